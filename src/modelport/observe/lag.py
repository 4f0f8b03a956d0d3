"""How late the event loop is: how long what is due waits because something else holds the loop."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

# Often enough for a percentile after a minute of work; a process that does nothing is woken less. What holds the loop
# for longer than the interval is always seen.
INTERVAL_S = 0.05
IDLE_INTERVAL_S = 0.25
# Of a core. Below it there is nothing that could hold the loop for long.
_IDLE_SHARE = 0.02


class LoopLag:
    """Asks the loop to be woken, and tells `observe` how many microseconds late it was. Up to 1,000 of them may be the
    loop's own clock, which counts milliseconds."""

    def __init__(self, observe: Callable[[int], None]) -> None:
        self._observe = observe
        self._interval_s = INTERVAL_S
        self._due_s = 0.0
        self._cpu_s = 0.0
        self._timer: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """Begin to watch the running loop."""
        self._cpu_s = time.process_time()
        self._wait()

    def stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def _wait(self) -> None:
        self._due_s = time.monotonic() + self._interval_s
        self._timer = asyncio.get_running_loop().call_later(self._interval_s, self._woken)

    def _woken(self) -> None:
        late_s = max(time.monotonic() - self._due_s, 0.0)
        self._observe(round(late_s * 1_000_000))
        cpu_s = time.process_time()
        idle = cpu_s - self._cpu_s < _IDLE_SHARE * (self._interval_s + late_s)
        self._cpu_s = cpu_s
        self._interval_s = IDLE_INTERVAL_S if idle else INTERVAL_S
        self._wait()
