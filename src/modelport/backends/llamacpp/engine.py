"""The owner's half: starts an engine's process, watches it, and starts it again when it dies."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import sys
from collections import deque
from pathlib import Path

import msgspec

from modelport.backends.llamacpp.options import COMPLAINT, LlamaCppOptions, control_path_for
from modelport.backends.protocol import Health, Status

log = logging.getLogger("modelport.llamacpp")

_FIRST_BACKOFF_S = 0.25
_MAX_BACKOFF_S = 30.0
# A process that lived this long was well; its end says nothing about the next start.
_WELL_AFTER_S = 60.0
_TERMINATE_S = 5.0
_KEPT_LINES = 20
_MAX_LINE_BYTES = 1_000_000
_MAX_QUOTE = 300
_STATUS_SUFFIX = ".status"


class Report(msgspec.Struct, frozen=True):
    """What the owner leaves beside the socket, for workers that find nobody listening."""

    status: str
    detail: str = ""
    pid: int = 0
    starts: int = 0


def read_report(socket_path: Path) -> Report | None:
    """The owner's last word about the engine at `socket_path`, or None before its first."""
    try:
        return msgspec.json.decode(socket_path.with_suffix(_STATUS_SUFFIX).read_bytes(), type=Report)
    except (OSError, msgspec.DecodeError):
        return None


class LlamaCppEngine:
    """One model in one process, kept alive between `start` and `close`.

    All methods belong to the event loop they are first called from. The process listens on `socket_path`, whose
    folder is made with mode 0700: whoever may open it may use the model unmetered.
    """

    def __init__(self, *, model_path: Path, socket_path: Path, options: LlamaCppOptions, name: str = "") -> None:
        self._model_path = model_path
        self._socket_path = socket_path
        self._options = options
        self._name = name or model_path.name
        self._report = Report(Status.LOADING, "the engine is being started")
        self._process: asyncio.subprocess.Process | None = None
        self._task: asyncio.Task[None] | None = None
        self._last_lines: deque[str] = deque(maxlen=_KEPT_LINES)
        self._starts = 0
        self._complaint = ""
        self._was_ready = False

    @property
    def pid(self) -> int | None:
        """The process that runs now, or None between two."""
        process = self._process
        return process.pid if process is not None and process.returncode is None else None

    @property
    def socket_path(self) -> Path:
        return self._socket_path

    @property
    def starts(self) -> int:
        """How often a process was started."""
        return self._starts

    def health(self) -> Health:
        return Health(Status(self._report.status), self._report.detail)

    async def start(self) -> None:
        """Start the process and return; `health` tells when the model is ready. Never raises for a bad model."""
        if self._task is None:
            self._socket_path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._note(Status.LOADING, "the engine is being started")
            self._task = asyncio.create_task(self._keep_alive(), name=f"engine {self._name}")

    async def close(self) -> None:
        """End the process and wait for its end. Idempotent."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
        status_path = self._socket_path.with_suffix(_STATUS_SUFFIX)
        for path in (self._socket_path, control_path_for(self._socket_path), status_path):
            path.unlink(missing_ok=True)

    def _note(self, status: Status, detail: str = "") -> None:
        """Remember the state and leave it where the workers look; replaced whole, so never read half."""
        self._report = Report(status, detail, self.pid or 0, self._starts)
        path = self._socket_path.with_suffix(_STATUS_SUFFIX)
        fresh = path.with_suffix(f"{_STATUS_SUFFIX}.new")
        fresh.write_bytes(msgspec.json.encode(self._report))
        fresh.replace(path)

    async def _keep_alive(self) -> None:
        loop = asyncio.get_running_loop()
        backoff_s = _FIRST_BACKOFF_S
        while True:
            started_s = loop.time()
            self._was_ready = False
            status = await self._run_once()
            if loop.time() - started_s > _WELL_AFTER_S:
                backoff_s = _FIRST_BACKOFF_S
            end = self._end_of(status)
            log.error("the engine of %s ended: %s; it is started again in %.2f s", self._name, end, backoff_s)
            # A model that was never ready is likely to fail again, so what is wrong with it stays to be seen.
            state = Status.LOADING if self._was_ready else Status.FAILED
            self._note(state, f"{end}; it is tried again in {backoff_s:g} s")
            await asyncio.sleep(backoff_s)
            backoff_s = min(backoff_s * 2, _MAX_BACKOFF_S)

    def _end_of(self, status: int) -> str:
        """Why the process ended, in its own words where it had any."""
        how = f"was killed by signal {-status}" if status < 0 else f"exited with status {status}"
        said = self._complaint or f"the engine's process {how}"
        errors = [line.split(" E ", 1)[1].strip() for line in self._last_lines if " E " in line]
        last = errors[:1] if self._complaint else errors[-1:] or list(self._last_lines)[-1:]
        return f"{said} (it said: {last[0][:_MAX_QUOTE]})" if last and not self._was_ready else said

    async def _run_once(self) -> int:
        """Start the process, follow it to its end, and return its exit status."""
        self._last_lines.clear()
        self._complaint = ""
        self._socket_path.unlink(missing_ok=True)
        # Threads that spin while they wait for each other take the cores from the gateway beside them.
        environment = {**os.environ, "OMP_WAIT_POLICY": "passive", "PYTHONUNBUFFERED": "1"}
        process = await asyncio.create_subprocess_exec(
            *self._command(),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            limit=_MAX_LINE_BYTES,
            env=environment,
            # Out of the terminal's foreground group: a Ctrl-C there is for the owner, which drains first.
            start_new_session=True,
        )
        self._process, self._starts = process, self._starts + 1
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._follow_states(process))
                group.create_task(self._follow_log(process))
                return await process.wait()
        finally:
            await self._end(process)

    def _command(self) -> list[str]:
        options = msgspec.json.encode(self._options).decode()
        command = [sys.executable, "-m", "modelport.backends.llamacpp.child", "--owner", str(os.getpid())]
        return [*command, "--socket", str(self._socket_path), "--model", str(self._model_path), "--options", options]

    async def _follow_states(self, process: asyncio.subprocess.Process) -> None:
        assert process.stdout is not None
        async for line in process.stdout:
            with contextlib.suppress(msgspec.DecodeError, ValueError):
                report = msgspec.json.decode(line, type=Report)
                if report.status == Status.READY:
                    self._was_ready = True
                    self._note(Status.READY)
                else:
                    self._complaint = report.detail
                log.info("engine of %s: %s %s", self._name, report.status, report.detail)

    async def _follow_log(self, process: asyncio.subprocess.Process) -> None:
        assert process.stderr is not None
        try:
            async for line in process.stderr:
                text = line.decode(errors="replace").rstrip()
                self._last_lines.append(text)
                level = logging.WARNING if text.startswith(COMPLAINT) else logging.DEBUG
                log.log(level, "engine of %s: %s", self._name, text.removeprefix(COMPLAINT))
        except ValueError:
            log.warning("engine of %s wrote a line of more than %d bytes", self._name, _MAX_LINE_BYTES)
            await process.stderr.read()

    async def _end(self, process: asyncio.subprocess.Process) -> None:
        if process.returncode is not None:
            return
        with contextlib.suppress(ProcessLookupError):
            process.terminate()
        try:
            await asyncio.wait_for(process.wait(), _TERMINATE_S)
        except TimeoutError:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()
