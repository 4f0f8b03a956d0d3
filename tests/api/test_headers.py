"""The headers of WIRE.md, on the routes that bypass FastAPI and on those that don't."""

from __future__ import annotations

import gzip
import re
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

import http_sf
import pytest

from tests.problems import check
from tests.rawhttp import Answer
from tests.serving import Server

CONFIG = """
default_models = false
[[models]]
id = "sandbox"
backend = "sandbox"
prices = { input_usd_per_mtok = "1", output_usd_per_mtok = "2" }
[[models]]
id = "picture"
kind = "image"
backend = "sandbox"
[server]
cors_origins = ["https://app.example", "null"]
[limits]
management_per_minute = 5000
"""
LIMITS = {"requests_per_minute": 1000, "tokens_per_minute": 100_000, "concurrent_calls": 7}
TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
GO_DURATION = re.compile(r"(\d+h)?(\d+m)?(\d+(\.\d+)?s)|\d+ms")
OPENAI = {f"x-ratelimit-{what}-{unit}" for what in ("limit", "remaining", "reset") for unit in ("requests", "tokens")}
ANTHROPIC = {
    f"anthropic-ratelimit-{unit}-{what}"
    for unit in ("requests", "tokens", "input-tokens", "output-tokens")
    for what in ("limit", "remaining", "reset")
}
X_STYLE = {"x-ratelimit-limit", "x-ratelimit-remaining", "x-ratelimit-reset"}
HOT: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"model": "sandbox", "messages": [{"role": "user", "content": "[[tokens:2]]"}]},
    "/v1/completions": {"model": "sandbox", "prompt": "[[tokens:2]]"},
    "/v1/messages": {"model": "sandbox", "max_tokens": 9, "messages": [{"role": "user", "content": "[[tokens:2]]"}]},
    "/v1/responses": {"model": "sandbox", "input": "[[tokens:2]]"},
    "/v1/predict": {"model": "picture", "inputs": ["x"]},
    "/v1/images/classify": {"model": "picture", "image": "eA=="},
}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with Server(tmp_path_factory.mktemp("headers"), config=CONFIG) as server:
        yield server


@pytest.fixture(scope="module")
def key(server: Server) -> str:
    """A key with one limit of each kind."""
    body = {"name": "limited", "limits": LIMITS, "scopes": ["inference", "models:read"]}
    made = Answer(*server.request("POST", "/v1/api_keys", body=body, key=server.credentials["api_key"]))
    return str(made.json()["key"])


def ask(server: Server, method: str, path: str, *, key: str = "", body: Any = None, **headers: str) -> Answer:
    sent = {name.replace("_", "-"): value for name, value in headers.items()}
    return Answer(*server.request(method, path, key=key, body=body, headers=sent))


def chat(server: Server, key: str, text: str = "[[tokens:2]]", *, stream: bool = False, **headers: str) -> Answer:
    body = {"model": "sandbox", "messages": [{"role": "user", "content": text}], "stream": stream}
    return ask(server, "POST", "/v1/chat/completions", key=key, body=body, **headers)


def limits(answer: Answer) -> tuple[dict[str, dict[str, Any]], dict[str, dict[str, Any]]]:
    """Policies and states by their names, read as structured fields."""
    return parsed(answer.headers["ratelimit-policy"]), parsed(answer.headers["ratelimit"])


def parsed(field: str) -> dict[str, dict[str, Any]]:
    items: Any = http_sf.parse(field.encode(), tltype="list")
    return {str(item): dict(more) for item, more in items}


@pytest.mark.parametrize("path", HOT)
def test_an_answer_says_what_served_it_and_what_it_cost(server: Server, key: str, path: str) -> None:
    answer = ask(server, "POST", path, key=key, body=HOT[path])
    assert answer.status == 200
    model = HOT[path]["model"]
    assert [answer.headers[f"x-model-{name}"] for name in ("requested", "served", "version")] == [model, model, "1"]
    assert int(answer.headers["openai-processing-ms"]) >= 0
    assert re.fullmatch(r"\d+(\.\d+)?", answer.headers["x-cost-usd"])
    assert re.fullmatch(r"req_[0-9a-f]{32}", answer.headers["x-request-id"])
    assert int(answer.headers["content-length"]) == len(answer.body)


@pytest.mark.parametrize("path", HOT)
def test_limits_are_told_in_the_ietf_style_and_in_the_routes_own(server: Server, key: str, path: str) -> None:
    answer = ask(server, "POST", path, key=key, body=HOT[path])
    policy, state = limits(answer)
    assert policy["key-rpm"] == {"q": 1000, "w": 60}
    assert policy["key-tpm"] == {"q": 100_000, "w": 60, "qu": "tokens"}
    assert policy["key-calls"]["q"] == 7
    assert set(policy) == set(state)
    assert all(0 <= state[name]["r"] < policy[name]["q"] for name in ("key-rpm", "key-calls"))
    openai, anthropic = "completions" in path or "responses" in path, "messages" in path
    told = [answer.headers.keys() >= style for style in (OPENAI, ANTHROPIC, X_STYLE)]
    assert told == [openai, anthropic, not (openai or anthropic)]
    if anthropic:
        reset = datetime.fromisoformat(answer.headers["anthropic-ratelimit-requests-reset"])
        assert time.time() - 5 < reset.timestamp() < time.time() + 65
    elif openai:
        assert GO_DURATION.fullmatch(answer.headers["x-ratelimit-reset-requests"])
        assert answer.headers["x-ratelimit-limit-tokens"] == "100000"
    else:
        assert time.time() - 5 < int(answer.headers["x-ratelimit-reset"]) < time.time() + 65


@pytest.mark.parametrize(("method", "path"), [("POST", "/v1/chat/completions"), ("GET", "/v1/models"), ("GET", "/no")])
def test_every_answer_is_dated(server: Server, key: str, method: str, path: str) -> None:
    answer = ask(server, method, path, key=key, body=HOT.get(path))
    dated = parsedate_to_datetime(answer.headers["date"])
    assert abs(dated.timestamp() - time.time()) < 60
    assert dated.tzinfo is UTC


def test_the_management_api_tells_its_limit_in_the_x_style(server: Server, key: str) -> None:
    answer = ask(server, "GET", "/v1/models", key=key)
    assert limits(answer)[0] == {"management": {"q": 5000, "w": 60}}
    assert answer.headers.keys() >= X_STYLE
    assert not answer.headers.keys() & OPENAI


def test_a_refusal_tells_the_limits_and_when_to_come_back(server: Server) -> None:
    body = {"name": "one", "limits": {"requests_per_minute": 1}}
    owner = server.credentials["api_key"]
    narrow = str(ask(server, "POST", "/v1/api_keys", key=owner, body=body).json()["key"])
    assert chat(server, narrow).status == 200
    answer = chat(server, narrow)
    check(answer, 429, "rate_limit_exceeded")
    assert answer.json()["error"]["type"] == "requests"
    assert limits(answer)[1]["key-rpm"]["r"] == 0
    assert answer.headers["x-ratelimit-remaining-requests"] == "0"
    assert 0 < int(answer.headers["retry-after-ms"]) <= int(answer.headers["retry-after"]) * 1000 <= 61_000


@pytest.mark.parametrize(("method", "path"), [("POST", "/v1/chat/completions"), ("GET", "/v1/models"), ("GET", "/x")])
def test_a_trace_that_came_in_goes_on_and_another_begins(server: Server, key: str, method: str, path: str) -> None:
    body = HOT.get(path)
    found = ask(server, method, path, key=key, body=body, traceparent=TRACE).headers["traceparent"]
    assert found[:36] == TRACE[:36]
    assert found != TRACE
    for wrong in ("", "00-0-0-0", TRACE.replace("00-", "ff-", 1), TRACE + "\t-x", "00-" + "0" * 32 + TRACE[35:]):
        found = ask(server, method, path, key=key, body=body, traceparent=wrong).headers["traceparent"]
        assert re.fullmatch(r"00-[0-9a-f]{32}-[0-9a-f]{16}-0[01]", found)
        assert TRACE[3:35] not in found


def test_a_stream_is_neither_compressed_nor_kept(server: Server, key: str) -> None:
    answer = chat(server, key, "[[tokens:3000]]", stream=True, accept_encoding="gzip")
    assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert (answer.headers["cache-control"], answer.headers["x-accel-buffering"]) == ("no-cache", "no")
    assert "content-encoding" not in answer.headers
    assert answer.body.startswith(b"data: ")


@pytest.mark.parametrize(
    ("accepted", "compressed"),
    [
        ("gzip", True),
        ("br, GZIP;q=0.5", True),
        ("gzip;q=0", False),
        ("gzip; q=0.000", False),
        ("br", False),
        ("", False),
    ],
)
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/openapi.json"])
def test_only_who_asks_gets_gzip(server: Server, key: str, path: str, accepted: str, compressed: bool) -> None:
    if path == "/openapi.json":
        answer = ask(server, "GET", path, accept_encoding=accepted)
    else:
        answer = chat(server, key, "[[tokens:2000]]", accept_encoding=accepted)
    assert (answer.headers.get("content-encoding") == "gzip") == compressed
    plain = gzip.decompress(answer.body) if compressed else answer.body
    assert plain.startswith(b"{")
    if compressed:
        assert "accept-encoding" in answer.headers["vary"].lower()


def test_answers_of_the_management_api_are_kept_by_no_cache(server: Server, key: str) -> None:
    for path in ("/v1/models", "/v1/models/nobody", "/v1/usage"):
        assert ask(server, "GET", path, x_api_key=key).headers["cache-control"] == "no-store"


@pytest.mark.parametrize(("method", "path"), [("POST", "/v1/chat/completions"), ("GET", "/v1/models"), ("GET", "/x")])
@pytest.mark.parametrize("origin", ["https://app.example", "null"])
def test_a_browser_may_read_answer_and_headers(server: Server, key: str, method: str, path: str, origin: str) -> None:
    for secret in (key, "wrong"):
        answer = ask(server, method, path, key=secret, body=HOT.get(path), origin=origin)
        assert answer.headers["access-control-allow-origin"] == origin
        assert "access-control-allow-credentials" not in answer.headers
        exposed = set(answer.headers["access-control-expose-headers"].split(", "))
        ours = {name for name in answer.headers if name.startswith(("x-", "ratelimit", "retry", "openai", "trace"))}
        assert ours <= exposed
        assert {"x-should-retry", "retry-after", "retry-after-ms"} <= exposed


@pytest.mark.parametrize("origin", ["https://evil.example", "https://app.example.evil.example", "http://app.example"])
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/models"])
def test_another_origin_is_not_let_in(server: Server, key: str, path: str, origin: str) -> None:
    for method in ("OPTIONS", "POST" if path in HOT else "GET"):
        answer = ask(server, method, path, key=key, body=HOT.get(path), origin=origin)
        assert "access-control-allow-origin" not in answer.headers
        assert "origin" in answer.headers["vary"].lower()


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/api_keys/x", "/nowhere"])
def test_a_preflight_is_answered_without_a_key(server: Server, path: str) -> None:
    asked = {"access_control_request_method": "DELETE", "access_control_request_headers": "authorization, x-custom"}
    answer = ask(server, "OPTIONS", path, origin="https://app.example", **asked)
    assert (answer.status, answer.body) == (204, b"")
    assert "content-length" not in answer.headers
    assert answer.headers["access-control-allow-origin"] == "https://app.example"
    assert "DELETE" in answer.headers["access-control-allow-methods"]
    assert answer.headers["access-control-allow-headers"] == "authorization, x-custom"


def test_what_a_client_writes_becomes_no_header(server: Server, key: str) -> None:
    for model in ("sandbox\r\nx-evil: 1", "sandbox@latest\r\nx-evil: 1", "sandböx", "sandbox@1\u0000"):
        body = {"model": model, "messages": [{"role": "user", "content": "x"}]}
        answer = ask(server, "POST", "/v1/chat/completions", key=key, body=body)
        check(answer, 404, "model_not_found")
        assert "x-evil" not in answer.headers
