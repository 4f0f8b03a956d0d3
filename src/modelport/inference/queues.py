"""Calls of this process that wait for something scarce, in the order in which they came."""

from __future__ import annotations

import asyncio
import math
import random

from modelport.kit.clock import Clock

# What other processes give back is found by asking: often at first, and then less.
_PAUSE_FIRST_S, _PAUSE_MOST_S = 0.02, 0.1


class Queues:
    """A queue for each key. Only the first of a queue asks; whoever leaves it lets the next one ask.

    Concurrency: used by the tasks of one event loop.
    """

    __slots__ = ("_clock", "_loop", "_queues", "_size")

    def __init__(self, loop: asyncio.AbstractEventLoop, clock: Clock) -> None:
        self._loop = loop
        self._clock = clock
        # A dictionary for its order, and since a place is left from anywhere.
        self._queues: dict[str, dict[Place, None]] = {}
        self._size = 0

    def __len__(self) -> int:
        return self._size

    def join(self, key: str, *, wait_s: float) -> Place:
        """The last place of the queue, for so long at most. It has to be left."""
        place = Place(self, key, until_s=self._clock.monotonic_s() + wait_s)
        self._queues.setdefault(key, {})[place] = None
        self._size += 1
        return place

    def wake(self, key: str) -> None:
        """Something was given back: the first of the queue asks now."""
        first = self._first(key)
        if first is not None:
            first.wake()

    def _first(self, key: str) -> Place | None:
        return next(iter(self._queues.get(key, ())), None)

    def _leave(self, place: Place) -> None:
        queue = self._queues.get(place.key, {})
        if place not in queue:
            return
        del queue[place]
        self._size -= 1
        if queue:
            self.wake(place.key)
        else:
            del self._queues[place.key]


class Place:
    """One call's place in a queue."""

    __slots__ = ("_pause_s", "_queues", "_turn", "_until_s", "_woken", "key")

    def __init__(self, queues: Queues, key: str, *, until_s: float) -> None:
        self.key = key
        self._queues = queues
        self._until_s = until_s
        self._pause_s = _PAUSE_FIRST_S
        self._turn: asyncio.Future[None] | None = None
        self._woken = False

    async def turn(self) -> bool:
        """Return when it is time to ask (again); false when this has taken too long."""
        left_s = self._until_s - self._queues._clock.monotonic_s()
        if left_s <= 0:
            return False
        if not self._woken:
            self._turn = self._queues._loop.create_future()
            await asyncio.wait([self._turn], timeout=min(left_s, self._pause()))
            self._turn = None
        self._woken = False
        return True

    def wake(self) -> None:
        """Ask now, or at once when the question that is on its way was answered."""
        self._woken = True
        if self._turn is not None and not self._turn.done():
            self._turn.set_result(None)

    def leave(self) -> None:
        """Done, with whatever came of it. Idempotent."""
        self._queues._leave(self)

    def _pause(self) -> float:
        """Seconds until this place asks by itself, which only the first does."""
        if self._queues._first(self.key) is not self:
            return math.inf
        pause_s = self._pause_s * random.uniform(0.5, 1.0)  # noqa: S311 - spread, not secrecy
        self._pause_s = min(2 * self._pause_s, _PAUSE_MOST_S)
        return pause_s
