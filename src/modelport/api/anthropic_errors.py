"""How an error is written where Anthropic's SDKs read it: their own body, statuses and types.

Source: Claude API reference (errors), as of 2026-11.
"""

from __future__ import annotations

import msgspec

from modelport.dialect.anthropic.wire import write
from modelport.errors import ModelportError, Overloaded, QuotaExceeded

# Where Anthropic's status for the same trouble is another one, which its SDKs have classes for.
_STATUSES = ((Overloaded, 529), (QuotaExceeded, 402))
_TYPES = {
    401: "authentication_error",
    402: "billing_error",
    403: "permission_error",
    404: "not_found_error",
    408: "timeout_error",
    409: "conflict_error",
    413: "request_too_large",
    429: "rate_limit_error",
    504: "timeout_error",
    529: "overloaded_error",
}
_encode = msgspec.json.Encoder().encode


def status_of(error: ModelportError) -> int:
    """The status of the answer."""
    return next((status for kind, status in _STATUSES if isinstance(error, kind)), error.status)


def type_of(status: int) -> str:
    """Anthropic's word for what a status means."""
    return _TYPES.get(status, "api_error" if status >= 500 else "invalid_request_error")


def error_object(error: ModelportError, *, request_id: str) -> dict[str, object]:
    """The body of an error answer, which is also what the last event of a broken stream says."""
    member = {"type": type_of(status_of(error)), "message": error.message}
    return {"type": "error", "error": member, "request_id": request_id}


def error_body(error: ModelportError, *, request_id: str) -> bytes:
    return _encode(error_object(error, request_id=request_id))


def error_event(error: ModelportError, *, request_id: str) -> bytes:
    """The last event of a stream that failed after its first byte."""
    return write([error_object(error, request_id=request_id)])
