"""The local models of this machine: their files fetched and checked, their engines run, and workers told where."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Collection, Iterable
from dataclasses import replace
from pathlib import Path

import structlog

from modelport.backends.llamacpp.engine import LlamaCppEngine
from modelport.backends.llamacpp.options import LlamaCppOptions, socket_path_for
from modelport.backends.protocol import Status
from modelport.catalog.configured import all_models
from modelport.catalog.handover import Place, write_places
from modelport.catalog.sources import Fetcher, SourceError, is_remote
from modelport.settings import FILES, ModelSettings, Settings, VersionSettings
from modelport.supervisor.terminal import Terminal

log = structlog.get_logger("modelport.models")

_MODELS_DIRECTORY = "models"
# Files that are hashed or downloaded at one time; more would only share the same disk and line.
_FETCHES = 2
# Looks at a file that has come. Raises: SourceError for one that must not be served.
Vet = Callable[[ModelSettings, VersionSettings, Path], Awaitable[None]]
# Of a download, what is told at once.
_TOLD_BYTES = 1_000_000


class ModelRoom:
    """Every version of every local model that has a file. Publishes each change to the workers at once."""

    def __init__(self, settings: Settings, run_dir: Path, *, terminal: Terminal) -> None:
        self._data_dir = settings.data_dir
        self._run_dir = run_dir
        self._terminal = terminal
        self._fetcher = Fetcher(settings.data_dir / _MODELS_DIRECTORY)
        self._fetching = asyncio.Semaphore(_FETCHES)
        # How long calls of a version that is gone may still run.
        self._linger_s = settings.registry.drain_s + settings.server.call_timeout_s
        self._versions = {_name(row, version): (row, version) for row, version in placed_versions(all_models(settings))}
        self._places = {name: _looked_for(name) for name in self._versions}
        self._vet: Vet | None = None
        self._kept: frozenset[tuple[str, str]] = frozenset()
        self._engines: dict[tuple[str, str], LlamaCppEngine] = {}
        self._bringing: dict[tuple[str, str], asyncio.Task[None]] = {}
        self._stopping: set[asyncio.Task[None]] = set()
        self._closing = threading.Event()

    def publish(self) -> None:
        """Write where every version is now."""
        write_places(self._run_dir, self._places.values())

    def start(self) -> None:
        """Begin to fetch files and start engines, in the background. What fails is published, never raised."""
        for name in self._versions:
            self._bringing[name] = asyncio.create_task(self._bring(*self._versions[name]))

    def adopt(
        self, wanted: Iterable[tuple[ModelSettings, VersionSettings]], *, keep: Collection[tuple[str, str]], vet: Vet
    ) -> None:
        """Have these versions from now on: bring those that are new, let go of those that are no more. `keep` names
        those whose files may change or vanish where they come from; `vet` is asked before such a file is served."""
        self._kept, self._vet = frozenset(keep), vet
        versions = {_name(row, version): (row, version) for row, version in wanted}
        gone = self._versions.keys() - versions.keys()
        new = versions.keys() - self._versions.keys()
        self._versions = versions
        for name in gone:
            self._let_go(name)
        for name in new:
            self._places[name] = _looked_for(name)
            self._bringing[name] = asyncio.create_task(self._bring(*versions[name]))
        if gone or new:
            self.publish()

    def placed(self) -> Iterable[Place]:
        """Every version's place now."""
        return self._places.values()

    async def close(self) -> None:
        """Stop fetching, and every engine. Call it after the workers have ended."""
        self._closing.set()
        tasks = [*self._bringing.values(), *self._stopping]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.gather(*(engine.close() for engine in self._engines.values()))

    def _let_go(self, name: tuple[str, str]) -> None:
        del self._places[name]
        self._bringing.pop(name).cancel()
        if name in self._engines:
            task = asyncio.create_task(self._stop_engine(name, self._engines[name]))
            self._stopping.add(task)
            task.add_done_callback(self._stopping.discard)

    async def _stop_engine(self, name: tuple[str, str], engine: LlamaCppEngine) -> None:
        await asyncio.sleep(self._linger_s)
        if name not in self._versions and self._engines.get(name) is engine:
            await self._engines.pop(name).close()

    async def _bring(self, row: ModelSettings, version: VersionSettings) -> None:
        try:
            async with self._fetching:
                path = await self._fetch(row, version)
            if self._vet is not None and _name(row, version) in self._kept:
                await self._vet(row, version, path)
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
        if is_remote(version.source):
            self._place(row, version, Status.LOADING, detail="its file is being downloaded")
        progress = self._progress(row, version, asyncio.get_running_loop())
        fetch = self._fetcher.keep if _name(row, version) in self._kept else self._fetcher.fetch
        return await asyncio.to_thread(fetch, version.source, sha256=version.sha256, progress=progress)

    def _progress(
        self, row: ModelSettings, version: VersionSettings, loop: asyncio.AbstractEventLoop
    ) -> Callable[[int, int | None], None]:
        def progress(done_bytes: int, total_bytes: int | None) -> None:
            """Called from the downloading thread, which nothing but an exception ends."""
            if self._closing.is_set() or _name(row, version) not in self._versions:
                raise SourceError("the download was interrupted; the next start goes on from there")
            loop.call_soon_threadsafe(self._come_so_far, row, version, done_bytes, total_bytes or 0)

        return progress

    def _come_so_far(self, row: ModelSettings, version: VersionSettings, done_bytes: int, total_bytes: int) -> None:
        self._terminal.progress(f"{row.id}@{version.version}", done_bytes, total_bytes)
        place = self._places.get(_name(row, version))
        # Workers read the file anew each time it changes, so not every chunk is worth it.
        if place is not None and done_bytes - place.done_bytes >= max(total_bytes // 50, _TOLD_BYTES):
            self._places[_name(row, version)] = replace(place, done_bytes=done_bytes, total_bytes=total_bytes)
            self.publish()

    async def _start_engine(self, row: ModelSettings, version: VersionSettings, path: Path) -> Path:
        name = f"{row.id}@{version.version}"
        socket_path = socket_path_for(self._data_dir, name)
        options = LlamaCppOptions.parse(row.options | version.options)
        running = self._engines.get(_name(row, version))
        if running is not None:
            # It was removed and came back before its engine had stopped.
            return socket_path
        engine = LlamaCppEngine(model_path=path, socket_path=socket_path, options=options, name=name)
        self._engines[_name(row, version)] = engine
        await engine.start()
        return socket_path

    def _place(
        self, row: ModelSettings, version: VersionSettings, status: Status, *, path: str = "", socket: str = "",
        detail: str = "",
    ) -> None:  # fmt: skip
        if _name(row, version) in self._versions:
            place = Place(row.id, version.version, status, path=path, socket=socket, detail=detail)
            self._places[_name(row, version)] = place
            self.publish()


def placed_versions(rows: Iterable[ModelSettings]) -> list[tuple[ModelSettings, VersionSettings]]:
    """The versions that have a file on this machine."""
    return [(row, one) for row in rows if row.backend in FILES for one in row.all_versions()]


def _name(row: ModelSettings, version: VersionSettings) -> tuple[str, str]:
    return row.id, version.version


def _looked_for(name: tuple[str, str]) -> Place:
    return Place(*name, Status.LOADING, detail="its file is looked for")
