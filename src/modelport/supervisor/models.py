"""The local models of this machine: their files fetched and checked, their engines run, and workers told where."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from pathlib import Path

import structlog

from modelport.backends.llamacpp.engine import LlamaCppEngine
from modelport.backends.llamacpp.options import LlamaCppOptions, socket_path_for
from modelport.backends.protocol import Status
from modelport.catalog.configured import all_models
from modelport.catalog.handover import Place, write_places
from modelport.catalog.sources import Fetcher, SourceError, is_remote
from modelport.settings import ModelSettings, Settings, VersionSettings
from modelport.supervisor.terminal import Terminal

log = structlog.get_logger("modelport.models")

_MODELS_DIRECTORY = "models"
# Files that are hashed or downloaded at one time; more would only share the same disk and line.
_FETCHES = 2


class ModelRoom:
    """Every version of every local model that has a file. Publishes each change to the workers at once."""

    def __init__(self, settings: Settings, run_dir: Path, *, terminal: Terminal) -> None:
        self._data_dir = settings.data_dir
        self._run_dir = run_dir
        self._terminal = terminal
        self._fetcher = Fetcher(settings.data_dir / _MODELS_DIRECTORY)
        self._fetching = asyncio.Semaphore(_FETCHES)
        self._versions = [
            (row, version)
            for row in all_models(settings)
            if row.backend in ("llamacpp", "onnx")
            for version in row.all_versions()
        ]
        self._places = {
            (row.id, version.version): Place(row.id, version.version, Status.LOADING, detail="its file is looked for")
            for row, version in self._versions
        }
        self._engines: list[LlamaCppEngine] = []
        self._tasks: list[asyncio.Task[None]] = []
        self._closing = threading.Event()

    def publish(self) -> None:
        """Write where every version is now."""
        write_places(self._run_dir, self._places.values())

    def start(self) -> None:
        """Begin to fetch files and start engines, in the background. What fails is published, never raised."""
        self._tasks = [asyncio.create_task(self._bring(row, version)) for row, version in self._versions]

    async def close(self) -> None:
        """Stop fetching, and every engine. Call it after the workers have ended."""
        self._closing.set()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await asyncio.gather(*(engine.close() for engine in self._engines))

    async def _bring(self, row: ModelSettings, version: VersionSettings) -> None:
        try:
            async with self._fetching:
                path = await self._fetch(row, version)
            socket = ""
            if row.backend == "llamacpp":
                socket = str(await self._start_engine(row, version, path))
        except (SourceError, ValueError, OSError) as error:
            log.error("model_failed", model=row.id, version=version.version, reason=str(error))
            self._place(row, version, Status.FAILED, detail=str(error))
            return
        # Whether the engine is up yet is for its workers to see; here it is placed.
        self._place(row, version, Status.READY, path=str(path), socket=socket)

    async def _fetch(self, row: ModelSettings, version: VersionSettings) -> Path:
        name = f"{row.id}@{version.version}"
        if is_remote(version.source):
            self._place(row, version, Status.LOADING, detail="its file is being downloaded")
        progress = self._progress(name, asyncio.get_running_loop())
        return await asyncio.to_thread(self._fetcher.fetch, version.source, sha256=version.sha256, progress=progress)

    def _progress(self, name: str, loop: asyncio.AbstractEventLoop) -> Callable[[int, int | None], None]:
        def progress(done_bytes: int, total_bytes: int | None) -> None:
            """Called from the downloading thread, which nothing but an exception ends."""
            if self._closing.is_set():
                raise SourceError("the download was interrupted; the next start goes on from there")
            loop.call_soon_threadsafe(self._terminal.progress, name, done_bytes, total_bytes or 0)

        return progress

    async def _start_engine(self, row: ModelSettings, version: VersionSettings, path: Path) -> Path:
        name = f"{row.id}@{version.version}"
        socket_path = socket_path_for(self._data_dir, name)
        options = LlamaCppOptions.parse(row.options | version.options)
        engine = LlamaCppEngine(model_path=path, socket_path=socket_path, options=options, name=name)
        self._engines.append(engine)
        await engine.start()
        return socket_path

    def _place(
        self, row: ModelSettings, version: VersionSettings, status: Status, *, path: str = "", socket: str = "",
        detail: str = "",
    ) -> None:  # fmt: skip
        place = Place(row.id, version.version, status, path=path, socket=socket, detail=detail)
        self._places[row.id, version.version] = place
        self.publish()
