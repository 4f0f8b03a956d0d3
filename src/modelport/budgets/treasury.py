"""Keeps the purses true: seeds those that the shared state does not know, and raises them to the durable record.

The record is the sum of the usage events. A call is charged to its purses in the state at its end, when its event is
in the journal, so a purse is never below what the record says, but for what the state forgot: calls of a process that
died between the two, a state that lost its memory, calls that began before their budget was made. Whoever uses a
purse sums its events every few seconds (one process of all) and raises it, long before the holds of a process that
died expire. Decision: docs/decisions/0011-budgets.md.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Awaitable, Callable, Iterable, Sequence
from functools import partial
from typing import cast

import structlog

from modelport.budgets import store
from modelport.budgets.model import BudgetEvent, EventType
from modelport.budgets.rules import Purse
from modelport.db.engine import Database
from modelport.kit.clock import Clock
from modelport.state.protocol import HOLD_TTL_S, PurseLevel, State

# Before the holds of a dead process expire, its journal is brought home and the purses are raised to it.
TEND_INTERVAL_S = HOLD_TTL_S / 5
# A sum over many events is asked for no oftener than this many times its own length: 5 % of one connection.
_REST = 20
# A purse is tended for this many intervals after its last call.
_IDLE_TICKS = 20
_TOLD: dict[EventType, store.Told] = {
    "billing.limit_approaching": "approaching_us",
    "billing.limit_reached": "reached_us",
}
_log = structlog.get_logger("modelport.budgets")

Flush = Callable[[], Awaitable[None]]
# How many calls this process closed, and how many of them (the first ones) are in the record.
Progress = Callable[[], tuple[int, int]]
Notify = Callable[[BudgetEvent], None]


class _Tended:
    """A purse that calls of this process use. `ticks` is how long it is still tended, `due_s` when it is summed;
    `told` when there is nothing more to tell of its soft limit."""

    __slots__ = ("due_s", "purse", "ticks", "told")

    def __init__(self, purse: Purse) -> None:
        self.purse = purse
        self.ticks = _IDLE_TICKS
        self.due_s = 0.0
        self.told = purse.budget.soft_nanos is None


class Treasury:
    """One per process. Concurrency: any number of tasks of one event loop, any number of processes."""

    def __init__(
        self, db: Database, state: State, *, clock: Clock, flush: Flush, progress: Progress, notify: Notify
    ) -> None:
        """`flush` brings every call that ended on this host into the record; `notify` is told of limits."""
        self._db = db
        self._state = state
        self._clock = clock
        self._flush = flush
        self._progress = progress
        self._notify = notify
        self._owner = secrets.token_hex(8)
        self._tended: dict[str, _Tended] = {}
        self._reached: dict[str, Purse] = {}
        self._seeding: dict[str, asyncio.Task[None]] = {}
        self._tending: asyncio.Task[None] | None = None
        self._recording = _Recording()

    async def start(self) -> None:
        """Begin to tend purses."""
        self._tending = asyncio.create_task(self._tend_forever(), name="treasury")

    async def close(self) -> None:
        """Stop. Idempotent."""
        tasks = [*([self._tending] if self._tending else ()), *self._seeding.values()]
        self._tending = None
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def use(self, purses: Iterable[Purse]) -> None:
        """Calls draw from these now; they are tended for a while."""
        for purse in purses:
            tended = self._tended.get(purse.key)
            if tended is None or (tended.purse is not purse and tended.purse.budget != purse.budget):
                self._tended[purse.key] = _Tended(purse)
            else:
                tended.ticks = _IDLE_TICKS

    def reached(self, purse: Purse) -> None:
        """A call was refused since the purse has not enough; whoever it concerns is told soon, once in its period."""
        self._reached[purse.key] = purse

    async def seed(self, purses: Sequence[Purse]) -> None:
        """Tell the state what was spent of these, once for all tasks that wait for it.

        Raises: Unavailable, StateUnavailable.
        """
        waiting = []
        for purse in purses:
            task = self._seeding.get(purse.key)
            if task is None:
                task = self._seeding[purse.key] = asyncio.create_task(self._seed(purse))
                task.add_done_callback(partial(self._seeded, purse.key))
            waiting.append(asyncio.shield(task))
        await asyncio.gather(*waiting)

    async def levels(self, purses: Sequence[Purse]) -> list[PurseLevel]:
        """How these stand now, seeded where need be; nothing is taken. Raises: Unavailable, StateUnavailable."""
        levels = await self._peek(purses)
        unknown = [purse for purse, level in zip(purses, levels, strict=True) if level.spent is None]
        if not unknown:
            return levels
        await self.seed(unknown)
        return await self._peek(purses)

    async def _peek(self, purses: Sequence[Purse]) -> list[PurseLevel]:
        if not purses:
            return []
        return cast(list[PurseLevel], await self._state.peek([purse.bucket(0) for purse in purses]))

    async def _seed(self, purse: Purse) -> None:
        await self._flush()
        await self._state.raise_spent({purse.key: await self._sum(purse)})

    def _seeded(self, key: str, task: asyncio.Task[None]) -> None:
        del self._seeding[key]
        if not task.cancelled():
            # Looked at, so that it is not reported as forgotten where every task that waited was cancelled.
            task.exception()

    async def _sum(self, purse: Purse) -> int:
        async with self._db.connect() as conn:
            return await store.sum_spent(conn, purse=purse)

    async def _tend_forever(self) -> None:
        failing = False
        while True:
            await asyncio.sleep(TEND_INTERVAL_S)
            try:
                await self.tend()
                failing = False
            except Exception as error:  # noqa: BLE001  The worker loop: nothing is lost by a round that comes later.
                if not failing:
                    _log.warning("purses_not_tended", reason=f"{error!r:.300}")
                failing = True

    async def tend(self) -> None:
        """One round over the purses in use. Raises: Unavailable, StateUnavailable; the rest waits for the next one."""
        now_s = self._clock.monotonic_s()
        for key, tended in list(self._tended.items()):
            tended.ticks -= 1
            if tended.ticks < 0:
                del self._tended[key]
            elif now_s >= tended.due_s and await self._lease(key):
                await self._raise(tended)
        while self._reached:
            _, purse = self._reached.popitem()
            (level,) = await self.levels([purse])
            await self._tell("billing.limit_reached", purse, level.spent or 0)
        if self._recording.advance(*self._progress()):
            await self._state.recorded()

    async def _lease(self, key: str) -> bool:
        """Whether it is this process that sums the purse's events."""
        return await self._state.lease(f"purse:{key}", self._owner, ttl_s=3 * TEND_INTERVAL_S)

    async def _raise(self, tended: _Tended) -> None:
        purse = tended.purse
        began_s = self._clock.monotonic_s()
        spent = await self._sum(purse)
        ended_s = self._clock.monotonic_s()
        tended.due_s = ended_s + _REST * (ended_s - began_s)
        await self._state.raise_spent({purse.key: spent})
        soft = purse.budget.soft_nanos
        if soft is None or tended.told:
            return
        (level,) = await self._peek([purse])
        spent = max(spent, level.spent or 0)
        if spent >= soft:
            await self._tell("billing.limit_approaching", purse, spent)
            tended.told = True

    async def _tell(self, type: EventType, purse: Purse, spent_nanos: int) -> None:
        """Whichever process comes first in the period tells it."""
        column = _TOLD[type]
        async with self._db.begin() as conn:
            first = await store.mark_told(conn, budget_id=purse.budget.id, column=column, start_us=purse.start_us)
        if first:
            self._notify(BudgetEvent(type, purse.budget, spent_nanos, purse.start_us, purse.end_us))


class _Recording:
    """When the state may let go of what it holds for the record's sake: see `State.recorded`."""

    def __init__(self) -> None:
        self._closed = 0
        self._in_record = False

    def advance(self, closed: int, committed: int) -> bool:
        """One interval has passed. True when all that was closed by the last true answer has been in the record for
        a whole interval, within which the purses were raised to it."""
        if committed < self._closed:
            return False
        if not self._in_record:
            self._in_record = True
            return False
        self._closed, self._in_record = closed, False
        return True
