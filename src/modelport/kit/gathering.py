"""What may wait a moment while the processor is short, so that several pieces are handled as one.

Most of what a small piece of a stream costs is the same for a larger one: reading it through, a write, and waking
whoever reads it. A network card spares its processor in the same way (interrupt moderation). An idle loop waits for
nothing.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from weakref import WeakKeyDictionary

# How often the load is measured while anything may be gathered.
MEASURE_S = 0.02
# Below this share of a processor nothing waits; `FULL_SHARE` above it, the longest.
IDLE_SHARE = 0.35
FULL_SHARE = 0.4
# Shorter waits gather nothing.
_LEAST_S = 0.0003


class Gathering:
    """One per event loop; get it from `gathering_of`.

    `window_s` is how long something may wait now: nothing while the loop has time, up to `most_s` as its thread comes
    near to a whole processor.
    """

    __slots__ = ("_clocks", "_loop", "_measuring", "_users", "_waiting", "most_s", "window_s")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._waiting: list[Callable[[], None]] = []
        self._users = 0
        self._measuring = False
        self._clocks = (0.0, 0.0)
        self.most_s = 0.0
        self.window_s = 0.0

    def join(self) -> None:
        """Somebody has pieces that may be gathered; to be followed by `leave`."""
        self._users += 1
        if self.most_s and not self._measuring:
            self._measuring = True
            self._clocks = (time.thread_time(), self._loop.time())
            self._loop.call_later(MEASURE_S, self._measure)

    def leave(self) -> None:
        self._users -= 1

    def hold(self, handle: Callable[[], None]) -> None:
        """Call `handle` when the present window ends."""
        if not self._waiting:
            self._loop.call_later(self.window_s, self._release)
        self._waiting.append(handle)

    def _release(self) -> None:
        waiting, self._waiting = self._waiting, []
        for handle in waiting:
            handle()

    def _measure(self) -> None:
        used_s, now_s = time.thread_time(), self._loop.time()
        before_used_s, before_s = self._clocks
        self._clocks = (used_s, now_s)
        share = (used_s - before_used_s) / max(now_s - before_s, 1e-6)
        wanted_s = self.most_s * min(max((share - IDLE_SHARE) / FULL_SHARE, 0.0), 1.0)
        # Half of the way each time: what gathering saves lowers the share that asked for it.
        window_s = (self.window_s + wanted_s) / 2
        self.window_s = window_s if window_s >= _LEAST_S else 0.0
        if self._users:
            self._loop.call_later(MEASURE_S, self._measure)
        else:
            self._measuring = False
            self.window_s = 0.0


_gatherings: WeakKeyDictionary[asyncio.AbstractEventLoop, Gathering] = WeakKeyDictionary()


def gathering_of(loop: asyncio.AbstractEventLoop) -> Gathering:
    """The gathering of this event loop."""
    gathering = _gatherings.get(loop)
    if gathering is None:
        gathering = _gatherings[loop] = Gathering(loop)
    return gathering
