"""What Gemini's refusals mean where they mean something else than those of other servers."""

from __future__ import annotations

import re
from typing import Any

import msgspec

from modelport.backends.upstream.refusals import refusal
from modelport.errors import ContextTooLong, ModelportError, UpstreamRejected

_SECONDS = re.compile(r"(\d+(?:\.\d+)?)s")
_TOO_LONG = re.compile(r"exceeds the maximum number of tokens", re.I)


def gemini_refusal(
    name: str, status: int, body: bytes, *, retry_after: bytes | None = None, now_us: int = 0
) -> ModelportError:
    """The error for an answer with a status other than 2xx.

    A wrong key is a 400 there, and the time to wait stands in the body. Source: google.rpc.Status with ErrorInfo and
    RetryInfo (AIP-193).
    """
    details = _details(body)
    if any(detail.get("reason") == "API_KEY_INVALID" for detail in details):
        status = 401
    for detail in details:
        wait = _SECONDS.fullmatch(str(detail.get("retryDelay")))
        if wait is not None and retry_after is None:
            retry_after = wait[1].encode()
    error = refusal(name, status, body, retry_after=retry_after, now_us=now_us)
    if isinstance(error, UpstreamRejected) and _TOO_LONG.search(error.message):
        return ContextTooLong(error.message, param="messages")
    return error


def _details(body: bytes) -> list[dict[str, Any]]:
    try:
        answer = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return []
    error = answer.get("error") if isinstance(answer, dict) else None
    details = error.get("details") if isinstance(error, dict) else None
    return [detail for detail in details if isinstance(detail, dict)] if isinstance(details, list) else []
