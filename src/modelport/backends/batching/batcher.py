"""A queue in front of one model: whenever a slot is free, it takes what is waiting, as much as goes together.

No window is waited for. A batch grows by itself with the backlog, and a lone call is computed at once.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Any

from modelport.backends.batching.admission import Experience, Outlook, Turn, retry_after_s
from modelport.backends.batching.cost import CostModel
from modelport.backends.batching.figures import Figures
from modelport.backends.batching.queue import Batch, Entry, FairQueue
from modelport.backends.batching.work import Packing, Prepared
from modelport.errors import CallTimeout, Internal, ModelportError, Overloaded, Unavailable
from modelport.kit.clock import Clock

# What is expected to take less is computed on the event loop: a thread and back would take about as long.
INLINE_S = 0.0002
# One in so many of those is measured, since measuring takes about as long as the smallest of them.
_MEASURE_EVERY = 8
# A batch that one call broke is computed twice. Whoever's call it was has no more company for so long.
_APART_S = 60.0
_MOST_APART = 1024

Compute = Callable[[Sequence[Any]], Sequence[Any]]
"""Computes blocks of rows together, one result for each; raises ModelportError. Called in the executor's threads."""


@dataclass(frozen=True, slots=True)
class Terms:
    """How one model is computed: what together, how many batches at one time, and within what time it is to answer."""

    packing: Packing
    slots: int = 1
    slo_s: float = 1.0


class _Ticket:
    """Who waits for an entry: its results so far by their first row, and where they are awaited."""

    __slots__ = ("answer", "results", "rows_left", "turn")

    def __init__(self, answer: asyncio.Future[list[Any]], turn: Turn, rows: int) -> None:
        self.answer = answer
        self.turn = turn
        self.results: dict[int, Any] = {}
        self.rows_left = rows


class Batcher:
    """Runs calls, one batch a slot, in threads. Lives on one event loop."""

    def __init__(
        self, compute: Compute, executor: Executor, clock: Clock, *, terms: Terms, cost: CostModel | None = None
    ) -> None:
        """`cost` is what was learnt of the model before, such as while it was warmed up."""
        self._compute = compute
        self._executor = executor
        self._clock = clock
        self._terms = terms
        self._queue = FairQueue(terms.packing)
        self._running: dict[Batch, float] = {}
        self._closed = False
        self.cost = cost or CostModel(terms.packing.full_cost)
        self.figures = Figures()
        self._experience = Experience()
        self._unmeasured = 0
        self._apart: dict[str, float] = {}

    def admit(self, tenant: str, cost: int, *, deadline_s: float) -> Turn:
        """Let a call in, to be submitted.

        Raises: Overloaded when a call of this cost would be answered too late; Unavailable when closed.
        """
        if self._closed:
            raise Unavailable("The model is being shut down.")
        now_s = self._clock.monotonic_s()
        if self.idle:
            return Turn(tenant, now_s, 0.0, deadline_s)
        outlook = self.outlook(tenant, cost, now_s)
        longer = Outlook(outlook.wait_s * self._experience.factor(tenant), outlook.own_s)
        retry_s = retry_after_s(longer, slo_s=self._terms.slo_s, left_s=deadline_s - now_s)
        if retry_s is not None:
            self.figures.refused += 1
            raise Overloaded(
                f"The model has so much to do that the call would take about {longer.wait_s + longer.own_s:.1f} s; "
                f"try again in {retry_s:.1f} s.",
                retry_after_s=round(retry_s, 2),
            )
        return Turn(tenant, now_s, outlook.wait_s, deadline_s)

    @property
    def idle(self) -> bool:
        """Whether nothing is computed, waits, or is on its way."""
        return not self._running and not self._queue.busy

    def at_once(self, prepared: Prepared) -> list[Any] | None:
        """The results of a call that takes next to no time, computed here and now; None where it takes longer, or the
        model isn't idle. Raises: Internal."""
        rows, sizes, expected = len(prepared.rows), prepared.sizes, self.cost
        if not rows or rows > self._terms.packing.max_rows or self._closed or not self.idle or not expected.sure:
            return None
        cost = rows if sizes is None else rows * max(sizes)
        if expected.base_s + expected.slope_s * cost > INLINE_S:
            return None
        self.figures.sizes.add(rows)
        self.figures.waits_s.add(0.0)
        self._unmeasured -= 1
        if self._unmeasured > 0:
            return list(self._compute([prepared.rows[:rows]]))
        self._unmeasured = _MEASURE_EVERY
        started_s = self._clock.monotonic_s()
        results = list(self._compute([prepared.rows[:rows]]))
        expected.learn(cost, self._clock.monotonic_s() - started_s)
        return results

    @contextlib.contextmanager
    def on_its_way(self, turn: Turn, cost: int) -> Iterator[None]:
        """Count a call that was let in and is being prepared."""
        self._queue.announce(turn.tenant, cost)
        try:
            yield
        finally:
            self._queue.retract(turn.tenant, cost)

    def outlook(self, tenant: str, cost: int, now_s: float) -> Outlook:
        """How long a new call would wait, and be computed."""
        ahead = self.cost.predict_backlog(self._queue.ahead_of(tenant, cost))
        own_s = self.cost.predict_backlog(cost)
        if len(self._running) < self._terms.slots and not self._queue.waiting:
            return Outlook(ahead / self._terms.slots, own_s)
        left = sum(
            max(self.cost.predict(batch.cost) - (now_s - since_s), 0.0) for batch, since_s in self._running.items()
        )
        return Outlook((left + ahead) / self._terms.slots, own_s)

    async def submit(self, turn: Turn, prepared: Prepared) -> list[Any]:
        """The results of the blocks that the rows were computed in, in the order of the rows.

        Cancelling the caller takes the call out of the queue. Raises: CallTimeout, Internal, Unavailable.
        """
        if self._closed:
            raise Unavailable("The model is being shut down.")
        if not len(prepared.rows):
            return []
        ticket = _Ticket(asyncio.get_running_loop().create_future(), turn, len(prepared.rows))
        entry = Entry(
            turn.tenant,
            prepared.rows,
            sizes=prepared.sizes,
            lane=self._lane(turn.tenant, prepared),
            deadline_s=turn.deadline_s,
            ticket=ticket,
        )
        self._queue.push(entry)
        self._pump()
        try:
            return await ticket.answer
        finally:
            self._queue.drop(entry)
            self.figures.waiting = self._queue.waiting

    def told(self) -> dict[str, Any]:
        """What it does and has learnt, for `/v1/models/{id}`."""
        terms = self._terms
        return {
            "max_batch": terms.packing.max_rows,
            "slots": terms.slots,
            "slo_ms": round(terms.slo_s * 1000, 1),
            "batch_ms": round(self.cost.base_s * 1000, 4),
            "unit_ms": round(self.cost.slope_s * 1000, 4),
            **self.figures.told(),
        }

    def close(self) -> None:
        """Refuse what is waiting; what is being computed ends in its own time."""
        self._closed = True
        for entry in self._queue.drain():
            _fail(entry, Unavailable("The model is being shut down."))

    def _lane(self, tenant: str, prepared: Prepared) -> object:
        """What the rows go together with; those of an organization that broke a batch lately, with its own alone."""
        until_s = self._apart.get(tenant) if self._apart else None
        if until_s is None:
            return prepared.lane
        if self._clock.monotonic_s() > until_s:
            del self._apart[tenant]
        return prepared.lane, tenant

    def _set_apart(self, tenant: str) -> None:
        self._apart[tenant] = self._clock.monotonic_s() + _APART_S
        if len(self._apart) > _MOST_APART:
            del self._apart[next(iter(self._apart))]

    def _results(self, batch: Batch, done: asyncio.Future[tuple[Sequence[Any], float]]) -> Sequence[Any]:
        if done.cancelled():
            return [Unavailable("The model is being shut down.")] * len(batch.entries)
        error = done.exception()
        if error is not None:
            return [Internal(internal=repr(error))] * len(batch.entries)
        results, took_s = done.result()
        self.cost.learn(batch.cost, took_s, crowded=self._queue.waiting > 0)
        return results

    def _pump(self) -> None:
        """Start batches while there are slots for them."""
        while len(self._running) < self._terms.slots and self._queue.waiting:
            now_s = self._clock.monotonic_s()
            batch = self._queue.take(now_s)
            for entry in batch.expired:
                self.figures.expired += 1
                _fail(entry, CallTimeout("The call's time was over before its turn came."))
            if not batch.entries:
                continue
            self._running[batch] = now_s
            self._note(batch, now_s)
            blocks = [block for _, _, block in batch.entries]
            work = asyncio.get_running_loop().run_in_executor(self._executor, self._run, blocks)
            work.add_done_callback(lambda done, batch=batch: self._finish(batch, done))  # type: ignore[misc]
        self.figures.waiting = self._queue.waiting

    def _note(self, batch: Batch, now_s: float) -> None:
        self.figures.sizes.add(batch.count)
        for entry, first, _ in batch.entries:
            if not first:
                turn: Turn = entry.ticket.turn
                waited_s = now_s - turn.since_s
                self.figures.waits_s.add(waited_s)
                self._experience.learn(turn.tenant, expected_s=turn.expected_s, waited_s=waited_s)

    def _run(self, blocks: Sequence[Any]) -> tuple[Sequence[Any], float]:
        """In the thread: each block's result or error, and how long it took. A failure of several is looked into, so
        that one call's input fails no other call."""
        started_s = self._clock.monotonic_s()
        try:
            results = self._compute(blocks)
        except ModelportError as error:
            results = [error] if len(blocks) == 1 else [self._alone(block) for block in blocks]
        return results, self._clock.monotonic_s() - started_s

    def _alone(self, block: Any) -> Any:
        try:
            return self._compute([block])[0]
        except ModelportError as error:
            return error

    def _finish(self, batch: Batch, done: asyncio.Future[tuple[Sequence[Any], float]]) -> None:
        del self._running[batch]
        results = self._results(batch, done)
        for (entry, _, _), result in zip(batch.entries, results, strict=True):
            if isinstance(result, ModelportError):
                # Before the next batch is taken: the rest of a call that failed is not computed.
                self._queue.drop(entry)
                if len(batch.entries) > 1:
                    self._set_apart(entry.tenant)
        self._pump()
        for (entry, first, block), result in zip(batch.entries, results, strict=True):
            if isinstance(result, ModelportError):
                _fail(entry, result)
            else:
                _deliver(entry, first, len(block), result)


def _deliver(entry: Entry, first: int, rows: int, result: Any) -> None:
    # Slots may finish the blocks of a call in any order.
    ticket: _Ticket = entry.ticket
    ticket.results[first] = result
    ticket.rows_left -= rows
    if not ticket.rows_left and not ticket.answer.done():
        ticket.answer.set_result([ticket.results[place] for place in sorted(ticket.results)])


def _fail(entry: Entry, error: ModelportError) -> None:
    if not entry.ticket.answer.done():
        entry.ticket.answer.set_exception(error)
