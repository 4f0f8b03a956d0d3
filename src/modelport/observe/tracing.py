"""W3C trace context: a trace that came in is continued, otherwise one begins here. Pure but for the random ids.

Source: W3C Trace Context, Recommendation of 2021-11-23 (sections 3.2 traceparent, 3.3 tracestate).
"""

from __future__ import annotations

import os
import re
from typing import NamedTuple

_TRACEPARENT = re.compile(rb"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?", re.DOTALL)
_NO_TRACE = b"0" * 32
_NO_SPAN = b"0" * 16
# Section 3.3.1.5: at least this much is passed on; what is longer is dropped whole rather than cut.
MAX_TRACESTATE_BYTES = 512
_POOL_BYTES = 4096
_SAMPLED = 1


class _Random:
    """Random bytes taken from the system many at a time. One per process: it must not be shared by a fork."""

    __slots__ = ("_offset", "_pool")

    def __init__(self) -> None:
        self._pool = b""
        self._offset = 0

    def hex(self, size: int) -> str:
        if self._offset + size > len(self._pool):
            self._pool, self._offset = os.urandom(_POOL_BYTES), 0
        begin = self._offset
        self._offset = begin + size
        return self._pool[begin : begin + size].hex()


_random = _Random()
os.register_at_fork(after_in_child=_random.__init__)  # type: ignore[misc]


class Trace(NamedTuple):
    """Where this request stands in a distributed trace. `span_id` is ours; `parent_id` the caller's, if any."""

    trace_id: str
    span_id: str
    parent_id: str | None
    sampled: bool
    tracestate: str | None

    @classmethod
    def from_headers(cls, traceparent: bytes | None, tracestate: bytes | None) -> Trace:
        """Continue the trace of these request headers; a new one when `traceparent` is missing or not valid."""
        found = _TRACEPARENT.fullmatch(traceparent.strip()) if traceparent is not None else None
        if found is None or not _valid(found):
            return cls(_random.hex(16), _random.hex(8), None, False, None)
        return cls(
            found[2].decode(),
            _random.hex(8),
            found[3].decode(),
            bool(int(found[4], 16) & _SAMPLED),
            _state(tracestate),
        )

    def header(self) -> bytes:
        """The `traceparent` to answer with and to send to upstreams: same trace, our span."""
        return f"00-{self.trace_id}-{self.span_id}-{'01' if self.sampled else '00'}".encode()


def _valid(found: re.Match[bytes]) -> bool:
    version, trace_id, parent_id, _, more = found.groups()
    if version == b"ff" or (version == b"00" and more is not None):
        return False
    return trace_id != _NO_TRACE and parent_id != _NO_SPAN


def _state(tracestate: bytes | None) -> str | None:
    if not tracestate or len(tracestate) > MAX_TRACESTATE_BYTES:
        return None
    text = tracestate.decode("latin-1").strip()
    return text if text.isascii() and text.isprintable() else None
