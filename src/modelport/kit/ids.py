"""Identifiers: a prefix that says what it names and 32 hex digits that sort by time.

Source: RFC 9562 section 5.7 (UUID version 7: 48 bits of Unix milliseconds, then random bits). The version and
variant bits are left random here, since no part of the platform reads an id back as a UUID.
"""

from __future__ import annotations

import os

from modelport.kit.clock import Clock

# os.urandom costs about a microsecond a call whatever it returns, so it is asked for many ids at once.
_POOL_IDS = 256
_RANDOM_DIGITS = 20


class IdSource:
    """Makes ids. One per process: a pool that two processes shared would repeat itself."""

    __slots__ = ("_clock", "_offset", "_pool")

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._pool = ""
        self._offset = 0

    def new(self, prefix: str) -> str:
        """`prefix` (such as `req_`) and 32 hex digits; later ids of one process sort after earlier milliseconds."""
        offset = self._offset
        if offset >= len(self._pool):
            self._pool = os.urandom(_POOL_IDS * _RANDOM_DIGITS // 2).hex()
            offset = 0
        self._offset = end = offset + _RANDOM_DIGITS
        return f"{prefix}{self._clock.now_us() // 1_000:012x}{self._pool[offset:end]}"
