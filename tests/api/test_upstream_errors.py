"""What upstreams do wrong, told by the error contract: before the first byte as a status, after it as an event."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from tests.problems import MEMBERS, check, check_end
from tests.rawhttp import Answer
from tests.serving import Server
from tests.upstream import Step, Upstream, chat_events, drop, error_answer, json_answer, raw, stream_answer, then

pytestmark = pytest.mark.asyncio(loop_scope="module")
CONFIG = """
default_models = false
[[upstreams]]
name = "far"
base_url = "{url}"
connect_timeout_s = 2
first_token_timeout_s = 2
breaker.enabled = false
[[upstreams]]
name = "gone"
base_url = "http://127.0.0.1:9/v1"
[[models]]
id = "sandbox"
backend = "sandbox"
[[models]]
id = "far"
targets = [{{ upstream = "far" }}]
route.retry.attempts = 1
[[models]]
id = "gone"
targets = [{{ upstream = "gone" }}]
"""


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def upstream() -> AsyncIterator[Upstream]:
    async with Upstream() as upstream:
        yield upstream


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def server(upstream: Upstream, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Server]:
    made = Server(tmp_path_factory.mktemp("errors"), config=CONFIG.format(url=upstream.url))
    await asyncio.to_thread(made.start)
    yield made
    await asyncio.to_thread(made.stop)


async def call(server: Server, text: str, *, model: str, stream: bool = False) -> Answer:
    body = {"model": model, "messages": [{"role": "user", "content": text}], "stream": stream}
    key = server.credentials["api_key"]
    return Answer(*await asyncio.to_thread(server.request, "POST", "/v1/chat/completions", body=body, key=key))


@pytest.mark.parametrize(
    ("step", "status", "code"),
    [
        (error_answer(400), 400, "why"),
        (error_answer(409), 409, "why"),
        (error_answer(422), 422, "why"),
        (error_answer(401), 502, "upstream_failed"),
        (error_answer(429, retry_after="7"), 503, "overloaded"),
        (error_answer(500), 502, "upstream_failed"),
        (json_answer(b"<html>oops Traceback</html>", 503), 502, "upstream_failed"),
        (json_answer(b"not json"), 502, "upstream_failed"),
        (json_answer(b"[1]"), 502, "upstream_failed"),
        (json_answer(b'{"choices": 7}'), None, None),
        (raw(b"\xff\xfe garbage \r\n\r\n", close=True), 502, "upstream_failed"),
        (drop(), 502, "upstream_failed"),
    ],
    ids=["400", "409", "422", "401", "429", "500", "html", "no-json", "list", "choices", "garbage", "drop"],
)
async def test_upstreams_failures_keep_the_contract(
    server: Server, upstream: Upstream, step: Step, status: int | None, code: str | None
) -> None:
    upstream.default = step
    answer = await call(server, "hi", model="far")
    if status is None:
        assert answer.status < 500 or answer.json()["error"]["code"] == "upstream_failed"
    elif code == "why":
        assert (answer.status, answer.code) == (status, "why")
        assert answer.headers["x-should-retry"] == "false"
    else:
        check(answer, status, code)


async def test_an_upstream_that_nobody_answers_for_is_a_502(server: Server) -> None:
    check(await call(server, "hi", model="gone"), 502, "upstream_failed")


CHUNKS = chat_events(["Hel", "lo"])


@pytest.mark.parametrize(
    "step",
    [
        then(stream_answer(CHUNKS[:2], end=False), drop(reset=True)),
        stream_answer(CHUNKS[:2]),
        stream_answer([*CHUNKS[:2], b"data: {garbage\n\n"]),
        stream_answer([*CHUNKS[:2], b'data: {"choices": 7}\n\n', *CHUNKS[2:]]),
        stream_answer([*CHUNKS[:2], b'data: {"choices": [{"index": "x", "delta": 3}]}\n\n', *CHUNKS[2:]]),
        stream_answer([*CHUNKS[:2], b'data: {"error": {"message": "no", "code": 500}}\n\n']),
        stream_answer([*CHUNKS[:2], b"data: " + b"x" * 3_000_000 + b"\n\n"]),
        stream_answer([*CHUNKS[:2], b'data: {"usage": {"prompt_tokens": "many"}}\n\n', *CHUNKS[2:]]),
    ],
    ids=["reset", "no end", "garbage", "choices", "delta", "error", "huge", "usage"],
)
async def test_a_stream_ends_with_done_or_an_error_and_never_silently(
    server: Server, upstream: Upstream, step: Step
) -> None:
    upstream.default = step
    check_end(await call(server, "hi", model="far", stream=True))
    folded = await call(server, "hi", model="far")
    assert folded.status == 200 or set(folded.json()) == MEMBERS
