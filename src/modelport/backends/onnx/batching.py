"""A bounded queue in front of one model: whenever it is free, it takes what is waiting, as much as goes together.

No window is waited for. A batch grows by itself with the backlog, and a lone call is computed at once.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Executor
from typing import Any

from modelport.backends.onnx.runner import Prepared, Runner
from modelport.calls import Call, Delta
from modelport.errors import Internal, ModelportError, Unavailable
from modelport.kit.clock import Clock

# How many waiting calls are looked at for one batch, so that a long queue is not walked each time.
_LOOK_AHEAD = 64
# Weight of the newest batch in the running mean of the time a row takes.
_NEWEST = 0.2


class _Entry:
    """One call in the queue. It is given up when its `answer` is done (cancelled) before it was computed."""

    __slots__ = ("answer", "call", "next_row", "prepared", "results")

    def __init__(self, call: Call, prepared: Prepared, answer: asyncio.Future[Delta]) -> None:
        self.call = call
        self.prepared = prepared
        self.answer = answer
        self.next_row = 0
        self.results: list[Any] = []

    @property
    def complete(self) -> bool:
        return self.next_row == len(self.prepared.rows)


class Batcher:
    """Runs calls through a runner, one batch at a time, in a thread. Lives on one event loop."""

    def __init__(self, runner: Runner, executor: Executor, clock: Clock) -> None:
        self._runner = runner
        self._executor = executor
        self._clock = clock
        self._waiting: deque[_Entry] = deque()
        self._running = False
        self._closed = False
        self._row_s = 0.0

    async def submit(self, call: Call, prepared: Prepared) -> Delta:
        """The answer. Cancelling the caller takes the call out of the queue. Raises: Internal, Unavailable."""
        if self._closed:
            raise Unavailable("The model is being shut down.")
        entry = _Entry(call, prepared, asyncio.get_running_loop().create_future())
        self._waiting.append(entry)
        self._pump()
        return await entry.answer

    def backlog_s(self) -> float:
        """About how long what is waiting will take."""
        return self._row_s * sum(len(entry.prepared.rows) - entry.next_row for entry in self._waiting)

    def close(self) -> None:
        """Refuse what is waiting; what is being computed ends in its own time."""
        self._closed = True
        while self._waiting:
            _fail(self._waiting.popleft(), Unavailable("The model is being shut down."))

    def _pump(self) -> None:
        if self._running:
            return
        batch = self._take()
        if not batch:
            return
        self._running = True
        started_s = self._clock.monotonic_s()
        work = asyncio.get_running_loop().run_in_executor(self._executor, self._compute, batch)
        work.add_done_callback(lambda done: self._finish(batch, started_s, done))

    def _take(self) -> list[tuple[_Entry, Sequence[Any]]]:
        """Rows for one batch: first of the call that waits longest, then of any that go with them."""
        rows: list[Any] = []
        batch: list[tuple[_Entry, Sequence[Any]]] = []
        passed: list[_Entry] = []
        unfinished: list[_Entry] = []
        while self._waiting and len(rows) < self._runner.max_batch and len(passed) < _LOOK_AHEAD:
            entry = self._waiting.popleft()
            if entry.answer.done():
                continue
            taken = self._take_rows(entry, rows)
            if taken:
                batch.append((entry, taken))
            if not taken:
                passed.append(entry)
            elif not entry.complete:
                unfinished.append(entry)
        self._waiting.extendleft(reversed(passed))
        # A call with many rows goes to the end for the rest of them, so that it does not hold up the small ones.
        self._waiting.extend(unfinished)
        return batch

    def _take_rows(self, entry: _Entry, rows: list[Any]) -> Sequence[Any]:
        first = entry.next_row
        for row in entry.prepared.rows[first : first + self._runner.max_batch - len(rows)]:
            if rows and not self._runner.joins(rows, row):
                break
            rows.append(row)
            entry.next_row += 1
        return entry.prepared.rows[first : entry.next_row]

    def _compute(self, batch: list[tuple[_Entry, Sequence[Any]]]) -> list[tuple[_Entry, Delta]]:
        """In the thread: run the rows, and write the answers of the calls that are complete now."""
        results = iter(self._runner.run([row for _, rows in batch for row in rows]))
        answers = []
        for entry, rows in batch:
            entry.results.extend(next(results) for _ in rows)
            if len(entry.results) == len(entry.prepared.rows):
                answers.append((entry, self._runner.render(entry.call, entry.prepared, entry.results)))
        return answers

    def _finish(
        self,
        batch: list[tuple[_Entry, Sequence[Any]]],
        started_s: float,
        done: asyncio.Future[list[tuple[_Entry, Delta]]],
    ) -> None:
        self._running = False
        if done.cancelled():
            return
        error = done.exception()
        if error is not None:
            known = error if isinstance(error, ModelportError) else Internal(internal=repr(error))
            for entry, _ in batch:
                self._drop(entry, known)
        else:
            for entry, answer in done.result():
                if not entry.answer.done():
                    entry.answer.set_result(answer)
            self._learn(self._clock.monotonic_s() - started_s, sum(len(rows) for _, rows in batch))
        self._pump()

    def _learn(self, took_s: float, rows: int) -> None:
        row_s = took_s / rows
        self._row_s = row_s if not self._row_s else self._row_s + _NEWEST * (row_s - self._row_s)

    def _drop(self, entry: _Entry, error: ModelportError) -> None:
        _fail(entry, error)
        if entry in self._waiting:
            self._waiting.remove(entry)


def _fail(entry: _Entry, error: ModelportError) -> None:
    if not entry.answer.done():
        entry.answer.set_exception(error)
