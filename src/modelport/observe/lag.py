"""How late the event loop is: how long what is due waits because something else holds the loop."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

# Twenty samples a second cost a ten-thousandth of a core, and are enough for a percentile after a minute.
INTERVAL_S = 0.05


class LoopLag:
    """Asks the loop to be woken, and tells `observe` how many microseconds late it was. Up to 1,000 of them may be the
    loop's own clock, which counts milliseconds."""

    def __init__(self, observe: Callable[[int], None]) -> None:
        self._observe = observe
        self._due_s = 0.0
        self._timer: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """Begin to watch the running loop."""
        self._wait()

    def stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def _wait(self) -> None:
        self._due_s = time.monotonic() + INTERVAL_S
        self._timer = asyncio.get_running_loop().call_later(INTERVAL_S, self._woken)

    def _woken(self) -> None:
        self._observe(max(0, round((time.monotonic() - self._due_s) * 1_000_000)))
        self._wait()
