"""All processes of one model: a batch is computed by whichever is free, and one that ended is replaced.

A process that dies takes nothing along: whatever it was computing is computed again by its successor, several inputs
each by itself, so that only the input that kills every process fails.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import structlog

from modelport.backends.protocol import Health, Status
from modelport.backends.python.frames import Outcome
from modelport.backends.python.options import PythonOptions, UnusablePython
from modelport.backends.python.process import Died, ModelProcess, TookTooLong
from modelport.errors import ModelLoading

log = structlog.get_logger("modelport.models")
_FIRST_BACKOFF_S = 0.1
_MOST_BACKOFF_S = 30.0
# A process that lived this long was well; its end says nothing about the next start.
_WELL_AFTER_S = 30.0
_WATCH_S = 0.25
# So many times what a batch may take is spent on finding out which of its inputs a process died of.
_SUSPECT_TIMES = 3


class Processes:
    """Blocks, but for `close` and `health`: used by the threads of one backend."""

    def __init__(self, path: Path, options: PythonOptions, *, name: str) -> None:
        self._path = path
        self._options = options
        self._name = name
        # None stands for one that has to be started.
        self._free: queue.SimpleQueue[ModelProcess | None] = queue.SimpleQueue()
        self._all: set[ModelProcess] = set()
        self._lock = threading.Lock()
        self._closed = threading.Event()
        self._backoff_s = _FIRST_BACKOFF_S
        self._started_s = 0.0
        self.restarts = 0
        self.health = Health(Status.LOADING, f"Loading {path.name}.")

    @property
    def pids(self) -> list[int]:
        with self._lock:
            return [process.pid for process in self._all]

    def open(self) -> dict[str, Any]:
        """Start every process; what the model tells of itself. Raises: UnusablePython."""
        info: dict[str, Any] = {}
        for _ in range(self._options.processes):
            process, info = self._start()
            self._free.put(process)
        self.health = Health(Status.READY)
        threading.Thread(target=self._watch, name=f"watch {self._name}", daemon=True).start()
        return info

    def close(self) -> None:
        """End all of them, whatever they are doing."""
        self._closed.set()
        with self._lock:
            gone, self._all = self._all, set()
        for process in gone:
            process.end()

    def run(self, blocks: Sequence[Sequence[bytes]]) -> list[list[Outcome]]:
        """Each block's outcomes, computed together. Raises: ModelLoading while no process can be had."""
        inputs = [row for block in blocks for row in block]
        outcomes = iter(self._compute(inputs))
        return [[next(outcomes) for _ in block] for block in blocks]

    def _compute(self, inputs: list[bytes]) -> list[Outcome]:
        try:
            return self._once(inputs)
        except TookTooLong as death:
            if len(inputs) == 1:
                return [self._broken(death)]
        except Died as death:
            log.error("model_process_died", model=self._name, how=str(death), inputs=len(inputs))
        # Others wait meanwhile, so suspects do not get all the time in the world.
        until_s = time.monotonic() + _SUSPECT_TIMES * self._options.predict_timeout_s
        return [self._survived(value, until_s) for value in inputs]

    def _survived(self, value: bytes, until_s: float) -> Outcome:
        """The outcome of one input that a process may have died of. A second death is its doing."""
        if time.monotonic() > until_s:
            return Outcome(broken="it came with inputs that end the model's process, or take too long")
        try:
            return self._once([value])[0]
        except Died as death:
            return self._broken(death)

    def _broken(self, death: Died) -> Outcome:
        log.error("model_process_died", model=self._name, how=str(death), inputs=1)
        return Outcome(broken=f"the model's process {death}")

    def _once(self, inputs: list[bytes]) -> list[Outcome]:
        process = self._free.get()
        try:
            if process is None or not process.is_alive:
                process = self._restart(process)
            return process.predict(inputs)
        except Died:
            # It was well until then, and says nothing about the next one.
            self._backoff_s = _FIRST_BACKOFF_S
            self._forget(process)
            process = None
            raise
        finally:
            self._free.put(process)

    def _start(self) -> tuple[ModelProcess, dict[str, Any]]:
        if self._closed.is_set():
            raise UnusablePython("the model is being shut down")
        process = ModelProcess(self._path, self._options, name=self._name)
        with self._lock:
            self._all.add(process)
        try:
            info = process.load()
        except UnusablePython:
            self._forget(process)
            raise
        self._started_s = time.monotonic()
        return process, info

    def _restart(self, dead: ModelProcess | None) -> ModelProcess:
        """A process in the place of one that ended. Raises: ModelLoading when it can't be had."""
        self._forget(dead)
        if time.monotonic() - self._started_s > _WELL_AFTER_S:
            self._backoff_s = _FIRST_BACKOFF_S
        self.restarts += 1
        self.health = Health(Status.LOADING, "Its process ended; it is started again.")
        self._closed.wait(self._backoff_s)
        self._backoff_s = min(self._backoff_s * 2, _MOST_BACKOFF_S)
        try:
            process, _ = self._start()
        except UnusablePython as error:
            self.health = Health(Status.FAILED, f"{error}; it is tried again")
            raise ModelLoading("The model's process ended and is not back yet.", internal=str(error)) from error
        self.health = Health(Status.READY)
        return process

    def _forget(self, process: ModelProcess | None) -> None:
        if process is not None:
            with self._lock:
                self._all.discard(process)
            process.end()

    def _watch(self) -> None:
        """Bring back what died while nobody called it, so that the next call need not wait for it."""
        while not self._closed.wait(_WATCH_S):
            self._try_each(self._free.qsize())

    def _try_each(self, count: int) -> None:
        for _ in range(count):
            try:
                process = self._free.get_nowait()
            except queue.Empty:
                return
            if process is None or not process.is_alive:
                try:
                    process = self._restart(process)
                except ModelLoading:
                    process = None
            self._free.put(process)
