"""How an error is written: RFC 9457 problem details plus the `error` member that the OpenAI SDKs parse.

Source: RFC 9457 (problem details), RFC 9110 section 10.2.3 (Retry-After), OpenAI API reference (errors).
"""

from __future__ import annotations

import math

import msgspec

from modelport.errors import LimitExceeded, ModelportError, QuotaExceeded
from modelport.kit.money import format_usd

PROBLEM_TYPE = b"application/problem+json"
_encode = msgspec.json.Encoder().encode


def error_member(error: ModelportError) -> dict[str, str | None]:
    """OpenAI's `error` object, all four keys always present."""
    return {"message": error.message, "type": error.type, "code": error.code, "param": error.param}


def problem_body(error: ModelportError, *, request_id: str, path: str, base_url: str) -> bytes:
    """The JSON body of an error answer. `type` is the address of the page that explains the code."""
    problem = _problem(error, request_id=request_id, path=path, base_url=base_url)
    return _encode(problem | {"error": error_member(error)})


def inference_body(error: ModelportError, *, request_id: str, path: str, base_url: str) -> bytes:
    """The same for clients of the Open Inference Protocol, who read `error` as a sentence.

    Source: Open Inference Protocol V2, "Inference Response JSON Error Object".
    """
    problem = _problem(error, request_id=request_id, path=path, base_url=base_url)
    return _encode(problem | {"error": error.message, "code": error.code, "param": error.param})


def _problem(error: ModelportError, *, request_id: str, path: str, base_url: str) -> dict[str, object]:
    return {
        "type": f"{base_url}/errors/{error.code}",
        "title": error.title,
        "status": error.status,
        "detail": error.message,
        "instance": path,
        "request_id": request_id,
    }


def stream_event(error: ModelportError) -> bytes:
    """The last event of a stream that failed after its first byte."""
    return b"data: " + _encode({"error": error_member(error)}) + b"\n\n"


def retry_headers(error: ModelportError) -> list[tuple[bytes, bytes]]:
    """`Retry-After` and its millisecond form, `x-should-retry` where the SDKs would decide wrongly, and what is left of
    a budget that refused."""
    headers: list[tuple[bytes, bytes]] = []
    if error.retry_after_s is not None and error.should_retry is not False:
        headers.append((b"retry-after", b"%d" % max(math.ceil(error.retry_after_s), 1)))
        headers.append((b"retry-after-ms", b"%d" % max(math.ceil(error.retry_after_s * 1000), 1)))
    if error.should_retry is not None:
        headers.append((b"x-should-retry", b"true" if error.should_retry else b"false"))
    if isinstance(error, QuotaExceeded) and error.left_nanos is not None:
        headers.append((b"x-budget-remaining-usd", format_usd(error.left_nanos).encode()))
    if error.status == 426:
        headers += [(b"upgrade", b"websocket"), (b"connection", b"upgrade"), (b"sec-websocket-version", b"13")]
    if error.status == 401:
        headers.append((b"www-authenticate", b'Bearer realm="modelport"'))
    return headers


def levels_of(error: ModelportError) -> list[object]:
    """The limits as they stood when a call was refused, for the headers."""
    return error.levels if isinstance(error, LimitExceeded) else []
