"""The error contracts of WIRE.md, checked on one answer: ours, and Anthropic's where its SDKs are the clients."""

from __future__ import annotations

import json
import re
from typing import Any

from tests.rawhttp import Answer

MEMBERS = {"type", "title", "status", "detail", "instance", "request_id", "error"}
RETRIED = {408, 409, 429, 500, 502, 503, 504}
# What passes by itself, so that SDKs are left to their own judgement.
PASSING = {
    "rate_limit_exceeded", "overloaded", "model_loading", "unavailable", "state_unavailable", "internal_error",
    "upstream_failed", "timeout", "invalid_request_error", "idempotency_in_flight",
}  # fmt: skip
# What Anthropic calls our codes; it has no word for the others.
ANTHROPICS = {
    "invalid_request_error": "invalid_request_error",
    "invalid_api_key": "authentication_error",
    "permission_denied": "permission_error",
    "not_found": "not_found_error",
    "model_not_found": "not_found_error",
    "request_too_large": "request_too_large",
    "unsupported_media_type": "invalid_request_error",
    "rate_limit_exceeded": "rate_limit_error",
}
TRACES = re.compile(r"Traceback|File \"|\.py\b|sqlalchemy|asyncpg|msgspec|pydantic|uvicorn|0x[0-9a-f]{6}")


def check(answer: Answer, status: int, code: str | None = None, *, path: str | None = None) -> None:
    """The whole contract for one error answer."""
    body = answer.json()
    assert answer.status == status, answer.body
    if "request-id" in answer.headers:
        _check_anthropic(answer, code)
        return
    if isinstance(body["error"], str):
        body = _as_problem(answer)
    else:
        assert answer.headers["content-type"] == "application/problem+json"
    assert set(body) == MEMBERS
    assert body["status"] == status
    assert body["request_id"] == answer.headers["x-request-id"]
    assert re.fullmatch(r"req_[0-9a-f]{32}", body["request_id"])
    assert set(body["error"]) == {"message", "type", "code", "param"}
    assert body["detail"] == body["error"]["message"]
    assert body["type"] == f"/errors/{body['error']['code']}"
    if path is not None:
        assert body["instance"] == path
    if code is not None:
        assert body["error"]["code"] == code
    assert not TRACES.search(answer.body.decode())
    check_advice(answer, body["error"]["code"])


def _as_problem(answer: Answer) -> dict[str, Any]:
    """What the Open Inference Protocol writes otherwise: `error` is a sentence, the rest of it stands beside."""
    body: dict[str, Any] = answer.json()
    assert answer.headers["content-type"] == "application/json"
    assert body["error"] == body["detail"]
    told = {"message": body["error"], "type": "", "code": body.pop("code"), "param": body.pop("param")}
    return body | {"error": told}


def _check_anthropic(answer: Answer, code: str | None) -> None:
    """The same where the body is Anthropic's own."""
    body = answer.json()
    assert answer.headers["content-type"] == "application/json"
    assert set(body) == {"type", "error", "request_id"}
    assert set(body["error"]) == {"type", "message"}
    assert body["type"] == "error"
    assert body["request_id"] == answer.headers["request-id"] == answer.headers["x-request-id"]
    if code is not None:
        assert body["error"]["type"] == ANTHROPICS[code]
    assert not TRACES.search(answer.body.decode())
    check_advice(answer, code or "")


def check_advice(answer: Answer, code: str) -> None:
    """`x-should-retry` and `Retry-After`, without which SDKs would do the wrong thing."""
    final = answer.headers.get("x-should-retry") == "false"
    if answer.status in RETRIED and code not in PASSING:
        assert final
    if answer.status in (429, 503) and not final:
        assert int(answer.headers["retry-after"]) >= 1
        assert int(answer.headers["retry-after-ms"]) >= 1
    if final:
        assert "retry-after" not in answer.headers
    if answer.status == 401:
        assert answer.headers["www-authenticate"].startswith("Bearer")


def check_end(answer: Answer) -> str:
    """The last event: `[DONE]` or an error object with its four keys."""
    assert answer.status == 200, answer.body
    assert answer.body.endswith(b"\n\n")
    last = answer.body.decode().rstrip("\n").rpartition("\n\n")[2].removeprefix("data: ")
    if last != "[DONE]":
        assert set(json.loads(last)) == {"error"}
        assert set(json.loads(last)["error"]) == {"message", "type", "code", "param"}
        assert not TRACES.search(last)
    return last
