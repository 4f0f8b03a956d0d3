"""The gateway workers of this machine: started, watched, replaced and drained."""

from __future__ import annotations

import asyncio
import os
import socket
import sys
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import structlog

from modelport.supervisor.refusal import StartRefused
from modelport.supervisor.waits import first
from modelport.supervisor.worker import GO, READY

log = structlog.get_logger("modelport.supervisor")

# A worker that dies is started again after this, doubled each time up to the longest, until one lives for a while.
_BACKOFF_FIRST_S = 0.2
_BACKOFF_LONGEST_S = 10.0
_LIVED_S = 30.0
# When none has ever become ready after so many tries, trying on only hides the reason.
_TRIES_AT_START = 3
# Beyond the drain that the settings allow: closing the journal and the database.
_CLOSE_S = 5.0


@dataclass(frozen=True, slots=True)
class Berth:
    """What every worker of a crew is started with."""

    run_dir: Path
    listener: socket.socket
    lock_fd: int
    # Where several workers gather their metrics; None for a lone one, which keeps its own.
    metrics_dir: Path | None


class Worker:
    """One worker process. `ready` is set once it accepts connections; `unwatched` while nobody replaces it."""

    __slots__ = ("_control", "index", "process", "ready", "started_s", "unwatched")

    def __init__(self, index: int, process: asyncio.subprocess.Process, control: socket.socket) -> None:
        self.index = index
        self.process = process
        self.ready = asyncio.Event()
        self.unwatched = False
        self.started_s = asyncio.get_running_loop().time()
        self._control = control
        asyncio.get_running_loop().add_reader(control, self._on_control)

    @classmethod
    async def spawn(cls, berth: Berth, index: int, *, successor: bool) -> Worker:
        """Start a process that imports the platform and then waits for `go`; a `successor` loads its models first."""
        ours, theirs = socket.socketpair()
        with theirs:
            theirs.set_inheritable(True)
            fds = (berth.listener.fileno(), theirs.fileno(), berth.lock_fd)
            numbers = (index, fds[0], fds[1], os.getpid(), int(successor))
            arguments = (str(berth.run_dir), *map(str, numbers))
            environment = dict(os.environ)
            environment.pop("PROMETHEUS_MULTIPROC_DIR", None)
            if berth.metrics_dir is not None:
                environment["PROMETHEUS_MULTIPROC_DIR"] = str(berth.metrics_dir)
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "modelport.supervisor.worker",
                *arguments,
                pass_fds=fds,
                env=environment,
                stdin=asyncio.subprocess.DEVNULL,
            )
        ours.setblocking(False)
        return cls(index, process, ours)

    def go(self) -> None:
        """Let it begin: the database is migrated and the settings are written."""
        with suppress(OSError):
            self._control.send(GO)

    def terminate(self) -> None:
        """Ask it to drain and end."""
        self.unwatched = True
        with suppress(ProcessLookupError):
            self.process.terminate()

    def kill(self) -> None:
        with suppress(ProcessLookupError):
            self.process.kill()

    async def ended(self) -> int:
        """Wait until it is gone; its exit code (negative: the signal that ended it)."""
        code = await self.process.wait()
        asyncio.get_running_loop().remove_reader(self._control)
        self._control.close()
        return code

    def _on_control(self) -> None:
        with suppress(BlockingIOError, ConnectionResetError):
            message = self._control.recv(16)
            if READY in message:
                self.ready.set()
            elif not message:
                asyncio.get_running_loop().remove_reader(self._control)


class Crew:
    """`size` workers on one listening socket, each replaced when it dies."""

    def __init__(self, berth: Berth, *, size: int, drain_s: float) -> None:
        self._berth = berth
        self._size = size
        self._drain_s = drain_s
        self._workers: dict[int, Worker] = {}
        self._watchers: set[asyncio.Task[None]] = set()
        self._failures = 0
        self._any_ready = False
        self._begun = asyncio.Event()
        self._closing = False
        self._failed = asyncio.Event()

    async def spawn(self) -> None:
        """Start the processes; they import the platform and wait for `begin`."""
        for _ in range(self._size):
            await self._add()

    def begin(self) -> None:
        """Let every worker begin, and those that come later at once."""
        self._begun.set()
        for worker in self._workers.values():
            worker.go()

    async def ready(self) -> None:
        """Return when every worker accepts connections. Raises: StartRefused when none comes up."""
        await first(self._all_ready(), self.failure())

    async def failure(self) -> None:
        """Wait until it is clear that no worker ever comes up, and say so. Raises: StartRefused."""
        await self._failed.wait()
        raise StartRefused("the gateway's workers don't start; the lines above say why.", exit_code=1)

    async def replace(self, *, overlap: bool) -> None:
        """Exchange every worker for a new one, one after the other.

        With `overlap` the new one accepts connections before the old one drains. Without it the old one ends
        first and connections wait in the socket's backlog, for state that two processes can't share.
        """
        for old in list(self._workers.values()):
            if self._closing:
                return
            if overlap:
                new = await self._add()
                new.unwatched = True
                await first(new.ready.wait(), new.process.wait())
                if not new.ready.is_set():
                    log.error("worker_exchange_failed", reason="the new worker did not start, so the old ones stay")
                    return
                new.unwatched = False
                await self._retire(old)
            else:
                await self._retire(old)
                await self._add()
        await self.ready()

    async def drain(self) -> None:
        """Stop every worker: calls in flight end, up to the drain that the settings allow."""
        self._closing = True
        workers = list(self._workers.values())
        await asyncio.gather(*(self._retire(worker) for worker in workers))
        await asyncio.gather(*self._watchers)

    def kill(self) -> None:
        """End every worker at once: for a second Ctrl-C."""
        self._closing = True
        for worker in self._workers.values():
            worker.kill()

    async def _add(self) -> Worker:
        index = next(index for index in range(self._size + 1) if index not in self._workers)
        worker = await Worker.spawn(self._berth, index, successor=self._any_ready)
        self._workers[index] = worker
        if self._begun.is_set():
            worker.go()
        watcher = asyncio.ensure_future(self._watch(worker))
        self._watchers.add(watcher)
        watcher.add_done_callback(self._watchers.discard)
        return worker

    async def _watch(self, worker: Worker) -> None:
        code = await worker.ended()
        del self._workers[worker.index]
        if self._berth.metrics_dir is not None:
            _forget_gauges(self._berth.metrics_dir, worker.process.pid)
        if worker.unwatched or self._closing:
            return
        self._any_ready |= worker.ready.is_set()
        lived = asyncio.get_running_loop().time() - worker.started_s > _LIVED_S
        self._failures = 1 if lived else self._failures + 1
        log.error("worker_died", worker=worker.index, process=worker.process.pid, how=_how(code))
        if not self._any_ready and self._failures >= _TRIES_AT_START * self._size:
            self._failed.set()
            return
        await asyncio.sleep(min(_BACKOFF_FIRST_S * 2 ** (self._failures - 1), _BACKOFF_LONGEST_S))
        if not self._closing:
            await self._add()

    async def _retire(self, worker: Worker) -> None:
        worker.terminate()
        try:
            async with asyncio.timeout(self._drain_s + _CLOSE_S):
                await worker.process.wait()
        except TimeoutError:
            log.error("worker_killed", worker=worker.index, reason="it did not end in time")
            worker.kill()
            await worker.process.wait()

    async def _all_ready(self) -> None:
        while len(self._workers) < self._size or not all(worker.ready.is_set() for worker in self._workers.values()):
            slow = [worker.ready.wait() for worker in self._workers.values() if not worker.ready.is_set()]
            await first(*slow, asyncio.sleep(_BACKOFF_FIRST_S))
        self._any_ready = True


def _how(code: int) -> str:
    return f"was ended by signal {-code}" if code < 0 else f"ended by itself with exit code {code}"


def _forget_gauges(metrics_dir: Path, pid: int) -> None:
    """Remove a dead worker's live gauges, or its calls in flight would be counted for ever. Its counters stay.

    What prometheus_client.multiprocess.mark_process_dead does, without importing it into this process.
    """
    for file in metrics_dir.glob(f"gauge_live*_{pid}.db"):
        file.unlink(missing_ok=True)
