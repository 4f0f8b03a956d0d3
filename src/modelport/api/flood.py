"""When more comes than can be answered: what one turn of the event loop takes on, and what it turns away at once.

Whoever comes while a turn is running waits in the socket until the next one, where nobody can see it; so the longer
turns get, the later everybody is answered, and in the end nobody in time. A turn is kept short instead: it takes on as
many requests as it can answer in its time, by what they took lately, and says 503 to the others, which costs a tenth.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

# A request is read in the turn after that in which it came, and answered by the end of that.
_TURNS_WAITED = 2
# Fewer say nothing about what a request takes, and are taken on in any case.
LEAST = 8
# Weight of the newest turn in the running mean.
_NEWEST = 0.2


class Flood:
    """Concurrency: one event loop."""

    __slots__ = ("_came", "_cost_s", "_cpu_s", "_longest_s", "_loop", "_most", "_now", "_taken", "turned_away")

    def __init__(
        self, longest_wait_s: float, loop: asyncio.AbstractEventLoop, *, now: Callable[[], float] = time.thread_time
    ) -> None:
        """`now` tells the processor time of the loop's thread: what a turn waits for is no work."""
        self._longest_s = longest_wait_s / _TURNS_WAITED
        self._loop = loop
        self._now = now
        self._cpu_s = now()
        self._cost_s = 0.0
        self._most: float = float("inf")
        self._came = self._taken = 0
        self.turned_away = 0

    def takes(self) -> bool:
        """Whether a request that was just read is to be answered."""
        self._came += 1
        if self._came == 1:
            # Runs when everything that has come was read, and before any of it is answered.
            self._loop.call_soon(self._turn)
        if self._came <= self._most:
            return True
        self.turned_away += 1
        return False

    def _turn(self) -> None:
        cpu_s = self._now()
        if self._taken >= LEAST:
            cost_s = (cpu_s - self._cpu_s) / self._taken
            self._cost_s = cost_s if not self._cost_s else self._cost_s + _NEWEST * (cost_s - self._cost_s)
            self._most = max(self._longest_s / max(self._cost_s, 1e-6), LEAST)
        self._cpu_s = cpu_s
        self._taken = int(min(self._came, self._most))
        self._came = 0
