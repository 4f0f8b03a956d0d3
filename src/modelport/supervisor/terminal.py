"""What the person who typed `modelport serve` sees: a few lines on standard output. Logs go to standard error."""

from __future__ import annotations

import sys
from typing import TextIO

_BAR_CELLS = 24
_STEP_PERCENT = 10


class Terminal:
    """Lines, and a bar for each long download; on anything but a terminal a line for every tenth of it."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = stream or sys.stdout
        self._live = self._stream.isatty()
        self._bar = False
        self._percent: dict[str, int] = {}

    def say(self, text: str) -> None:
        """Print `text` as lines of their own, below a bar that may be standing there."""
        if self._bar:
            self._stream.write("\n")
            self._bar = False
        self._stream.write(text + "\n")
        self._stream.flush()

    def progress(self, what: str, done_bytes: int, total_bytes: int) -> None:
        """Show how much of `what` is there; an unknown total is 0."""
        percent = 100 * done_bytes // total_bytes if total_bytes else 0
        if self._percent.get(what) == percent:
            return
        before = self._percent.get(what, -_STEP_PERCENT)
        if self._live:
            self._percent[what] = percent
            filled = _BAR_CELLS * percent // 100
            bar = "#" * filled + "." * (_BAR_CELLS - filled)
            self._stream.write(f"\r{what} [{bar}] {percent:3d} % of {total_bytes / 1e6:.0f} MB")
            self._stream.flush()
            self._bar = True
        elif percent - before >= _STEP_PERCENT or percent == 100:
            self._percent[what] = percent
            self.say(f"{what}: {percent} % of {total_bytes / 1e6:.0f} MB")
