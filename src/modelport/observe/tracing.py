"""W3C trace context: a trace that came in is continued, otherwise one begins here. Pure.

A trace that begins here bears the request's own id, so that one look finds a request in the logs and in the traces.

Source: W3C Trace Context, Recommendation of 2021-11-23 (sections 3.2 traceparent, 3.3 tracestate).
"""

from __future__ import annotations

import re
from typing import NamedTuple

_TRACEPARENT = re.compile(rb"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?", re.DOTALL)
_NO_TRACE = b"0" * 32
_NO_SPAN = b"0" * 16
# Section 3.3.1.5: at least this much is passed on; what is longer is dropped whole rather than cut.
MAX_TRACESTATE_BYTES = 512
_SAMPLED = 1


class Trace(NamedTuple):
    """Where this request stands in a distributed trace. `span_id` is ours; `parent_id` the caller's, if any."""

    trace_id: str
    span_id: str
    parent_id: str | None
    sampled: bool
    tracestate: str | None

    @classmethod
    def from_headers(cls, traceparent: bytes | None, tracestate: bytes | None, *, own: str) -> Trace:
        """Continue the trace of these request headers; a new one when `traceparent` is missing or not valid.

        `own` are 32 hex digits that nobody else has: a new trace's id, and, its random half, our span's.
        """
        if traceparent is None:
            return cls(own, own[16:], None, False, None)
        found = _TRACEPARENT.fullmatch(traceparent.strip())
        if found is None or not _valid(found):
            return cls(own, own[16:], None, False, None)
        return cls(
            found[2].decode(),
            own[16:],
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
