"""Time as a value that is passed in, so that a test can turn it by hand."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from typing import Protocol


class Clock(Protocol):
    """Where the platform reads the time."""

    def now_us(self) -> int:
        """Wall clock: microseconds since 1970-01-01 UTC. May jump; for records and windows."""
        ...

    def monotonic_s(self) -> float:
        """Seconds from an unknown start that never go back; for durations and deadlines."""
        ...


class SystemClock:
    """The machine's clock."""

    __slots__ = ()

    def now_us(self) -> int:
        return time.time_ns() // 1_000

    def monotonic_s(self) -> float:
        return time.monotonic()


class ManualClock:
    """A clock that stands still until a test advances it."""

    __slots__ = ("_elapsed_us", "_start_us")

    def __init__(self, *, start_us: int = 1_767_225_600_000_000) -> None:
        self._start_us = start_us
        self._elapsed_us = 0

    def now_us(self) -> int:
        return self._start_us + self._elapsed_us

    def monotonic_s(self) -> float:
        return self._elapsed_us / 1_000_000

    def advance(self, seconds: float) -> None:
        self._elapsed_us += round(seconds * 1_000_000)


def rfc3339(us: int) -> str:
    """`us` (microseconds since the epoch) as RFC 3339 in UTC, to the microsecond where there is one."""
    moment = datetime.fromtimestamp(us // 1_000_000, UTC).replace(microsecond=us % 1_000_000)
    return moment.isoformat().replace("+00:00", "Z")


def parse_rfc3339(text: str) -> int:
    """Microseconds since the epoch; a time without an offset is taken as UTC.

    Raises: ValueError when `text` is no RFC 3339 time.
    """
    moment = datetime.fromisoformat(text)
    moment = moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
    epoch = datetime(1970, 1, 1, tzinfo=UTC)
    delta = moment - epoch
    return (delta.days * 86_400 + delta.seconds) * 1_000_000 + delta.microseconds
