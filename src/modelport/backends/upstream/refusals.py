"""What an upstream's refusal means to our caller: status and body in, an error of ours out."""

from __future__ import annotations

from email.utils import parsedate_to_datetime
from typing import Any

import msgspec

from modelport.errors import (
    CallTimeout,
    ModelportError,
    Overloaded,
    UpstreamFailed,
    UpstreamLimited,
    UpstreamMisconfigured,
    UpstreamRejected,
)

# What is passed on of an upstream's own words, and what the log gets of a body that is no error object.
MAX_MESSAGE_CHARS = 1_000
MAX_WORD_CHARS = 100
# A longer Retry-After makes official SDKs give up; an upstream's clock or unit is more likely wrong than it is right.
MAX_RETRY_AFTER_S = 600.0
_DEFAULT_RETRY_AFTER_S = 1.0

# 402 too: it is our account with the upstream that is empty, not the caller's with us.
_OUR_CREDENTIALS = frozenset({401, 402, 403})
_TIMEOUTS = frozenset({408, 504})
# Anthropic's, which it also sends inside a stream that began with 200.
_OVERLOADED = 529
_BUSY = {"overloaded_error": Overloaded, "rate_limit_error": UpstreamLimited}


def refusal(
    name: str, status: int, body: bytes, *, retry_after: bytes | None = None, now_us: int = 0
) -> ModelportError:
    """The error for an answer with a status other than 2xx from the upstream called `name`."""
    who = f"The model's server {name!r}"
    details = _details(body)
    internal = f"status {status}: {body[:MAX_MESSAGE_CHARS].decode('utf-8', 'replace')}"
    if status in _OUR_CREDENTIALS:
        return UpstreamMisconfigured(
            f"{who} refused our credentials; its operator has to look at them", internal=internal
        )
    if status == _OVERLOADED:
        return Overloaded(
            f"{who} has more to do than it can take on",
            retry_after_s=retry_after_s(retry_after, now_us=now_us),
            internal=internal,
        )
    if status == 429:
        return UpstreamLimited(
            f"{who} has reached a limit of its own",
            retry_after_s=retry_after_s(retry_after, now_us=now_us),
            internal=internal,
        )
    if status in _TIMEOUTS:
        return CallTimeout(f"{who} took longer than it may", internal=internal)
    if 400 <= status < 500 and details is not None:
        return rejected(details, status=status)
    if 300 <= status < 500:
        # A redirect, or a 404 that no inference API wrote: `base_url` is likely wrong.
        return UpstreamMisconfigured(f"{who} gave an answer that no model gives", internal=internal)
    return UpstreamFailed(f"{who} failed", internal=internal)


def stream_error(name: str, error: Any) -> ModelportError:
    """The error for an `error` object that came with a status of 200: inside a stream, or in place of an answer."""
    details = error if isinstance(error, dict) else {"message": error}
    status = details.get("status", details.get("code"))
    if isinstance(status, int) and 400 <= status < 500 and status not in _OUR_CREDENTIALS | {408, 429}:
        return rejected(details, status=status)
    text = str(details.get("message"))[:MAX_MESSAGE_CHARS]
    busy = _BUSY.get(str(details.get("type")))
    if busy is not None:
        return busy(f"The model's server {name!r} has more to do than it can take on", internal=text)
    return UpstreamFailed(f"The model's server {name!r} failed while it answered", internal=text)


def rejected(details: dict[str, Any], *, status: int) -> UpstreamRejected:
    """The upstream's own words, cut to a bounded length."""
    return UpstreamRejected(
        str(details.get("message") or UpstreamRejected.title)[:MAX_MESSAGE_CHARS],
        status=status,
        code=_word(details.get("code")),
        type=_word(details.get("type")),
        param=_word(details.get("param")),
    )


def retry_after_s(value: bytes | None, *, now_us: int) -> float:
    """Seconds of a Retry-After header: a number or an HTTP date (RFC 9110 section 10.2.3); 1 where it is neither."""
    text = (value or b"").decode("latin-1").strip()
    try:
        seconds = float(text)
    except ValueError:
        try:
            seconds = parsedate_to_datetime(text).timestamp() - now_us / 1_000_000
        except ValueError:
            return _DEFAULT_RETRY_AFTER_S
    # Also false for NaN, which `float` takes for a number.
    return min(seconds, MAX_RETRY_AFTER_S) if seconds >= 0 else _DEFAULT_RETRY_AFTER_S


def _details(body: bytes) -> dict[str, Any] | None:
    """The error object of OpenAI's form, or of the forms that compatible servers are known to use."""
    try:
        answer = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None
    if not isinstance(answer, dict):
        return None
    error = answer.get("error")
    if isinstance(error, dict):
        return error
    if isinstance(error, str):
        return {**answer, "message": error}
    if isinstance(answer.get("message"), str):
        return answer
    if "detail" in answer:
        # FastAPI servers; its validation errors are a list, from which a caller can still read what is wrong.
        detail = answer["detail"]
        return {"message": detail if isinstance(detail, str) else msgspec.json.encode(detail).decode()}
    return None


def _word(value: Any) -> str | None:
    return value[:MAX_WORD_CHARS] if isinstance(value, str) and value else None
