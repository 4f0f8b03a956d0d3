"""The gemini backend against a real server: what is sent, what comes back, and what each failure becomes."""

from __future__ import annotations

import asyncio
import base64
import json
import struct
from collections.abc import AsyncIterator
from typing import Any

import pytest

from modelport.backends.gemini import GeminiBackend
from modelport.calls import Delta, Operation, Usage
from modelport.dialect.openai import events
from modelport.errors import BadRequest, CallTimeout, ModelportError, Overloaded, UpstreamFailed, UpstreamRejected
from modelport.kit.clock import ManualClock
from modelport.settings import UpstreamSettings
from tests.contract.test_openai_backend import HELLO, STREAM, call_of
from tests.gemini_upstream import candidate, content, refused, stream
from tests.upstream import Upstream, chunk, drop, hang, head, json_answer, raw, then


@pytest.fixture
async def upstream() -> AsyncIterator[Upstream]:
    async with Upstream() as server:
        server.default = json_answer(content(candidate("Hello.", finish="STOP")))
        yield server


@pytest.fixture
async def backend(upstream: Upstream) -> AsyncIterator[GeminiBackend]:
    settings = UpstreamSettings(name="up", kind="gemini", base_url=upstream.url + "beta")
    backend = GeminiBackend(settings, api_key="g-key", clock=ManualClock())
    yield backend
    await backend.close()


async def partly(backend: GeminiBackend, body: bytes, **how: Any) -> tuple[list[Delta], ModelportError | None]:
    """The deltas before the error, and the error."""
    deltas: list[Delta] = []
    stream = backend.stream(call_of(body, **how), model="gemini-x", max_output_tokens=50)
    try:
        while (delta := await anext(stream, None)) is not None:
            deltas.append(delta)
    except ModelportError as error:
        return deltas, error
    return deltas, None


def text_of(deltas: list[Delta]) -> str:
    found = events(b"".join(delta.raw for delta in deltas))
    return "".join(choice["delta"].get("content") or "" for body in found for choice in body["choices"])


async def test_a_call_goes_to_the_models_own_address_with_the_upstreams_key(
    upstream: Upstream, backend: GeminiBackend
) -> None:
    deltas, error = await partly(backend, HELLO)
    request = upstream.requests[0]
    assert error is None
    assert request.path == "/v1beta/models/gemini-x:generateContent"
    assert request.headers["x-goog-api-key"] == "g-key"
    assert "authorization" not in request.headers
    assert request.headers["traceparent"]
    assert request.json() == {
        "contents": [{"role": "user", "parts": [{"text": "Hi"}]}],
        "generationConfig": {"maxOutputTokens": 50},
    }
    assert (text_of(deltas), deltas[-1].usage) == ("Hello.", Usage(7, 3))


async def test_a_stream_comes_piece_by_piece_and_keeps_its_connection(
    upstream: Upstream, backend: GeminiBackend
) -> None:
    first = content(candidate("Hel"), usage={"promptTokenCount": 7, "candidatesTokenCount": 1})
    upstream.plan(stream(first, content(candidate("lo", finish="STOP"))))
    deltas, error = await partly(backend, STREAM)
    assert error is None
    assert upstream.requests[0].path == "/v1beta/models/gemini-x:streamGenerateContent?alt=sse"
    assert text_of(deltas) == "Hello"
    assert [delta.usage for delta in deltas if delta.timed] == [Usage(7, 1), Usage(7, 3)]
    await partly(backend, HELLO)
    assert upstream.connections == 1


async def test_a_hangup_reaches_the_upstream_with_what_was_used_until_then(
    upstream: Upstream, backend: GeminiBackend
) -> None:
    opening = head(200, content_type="text/event-stream", transfer_encoding="chunked")
    event = b"data: " + json.dumps(content(candidate("Hel"))).encode() + b"\r\n\r\n"
    upstream.plan(then(raw(opening, chunk(event)), hang()))
    deltas = backend.stream(call_of(STREAM), model="gemini-x", max_output_tokens=None)
    first = await anext(deltas)
    assert first.usage == Usage(7, 3)
    await deltas.aclose()
    await asyncio.wait_for(upstream.lines[0].gone.wait(), 5)


async def test_embeddings_are_one_batch_and_come_as_openai_packs_them(
    upstream: Upstream, backend: GeminiBackend
) -> None:
    upstream.plan(json_answer({"embeddings": [{"values": [0.5, -0.5]}, {"values": [1, 0]}]}))
    body = b'{"model":"public","input":["a","b"],"dimensions":2,"encoding_format":"base64"}'
    (delta,), _ = await partly(backend, body, operation=Operation.EMBEDDING)
    request = {"model": "models/gemini-x", "content": {"parts": [{"text": "a"}]}, "outputDimensionality": 2}
    assert upstream.requests[0].path == "/v1beta/models/gemini-x:batchEmbedContents"
    assert upstream.requests[0].json()["requests"][0] == request
    answer = json.loads(delta.raw)
    assert (answer["model"], len(answer["data"])) == ("public", 2)
    assert struct.unpack("<2f", base64.b64decode(answer["data"][0]["embedding"])) == (0.5, -0.5)
    assert delta.usage is not None
    assert (delta.usage.exact, delta.usage.input_tokens > 0) == (False, True)


@pytest.mark.parametrize(
    ("step", "kind", "status"),
    [
        (refused(400, "INVALID_ARGUMENT"), UpstreamRejected, 400),
        (refused(404, "NOT_FOUND"), UpstreamRejected, 404),
        (refused(400, "INVALID_ARGUMENT", details=[{"reason": "API_KEY_INVALID"}]), UpstreamFailed, 502),
        (refused(403, "PERMISSION_DENIED"), UpstreamFailed, 502),
        (refused(429, "RESOURCE_EXHAUSTED", details=[{"retryDelay": "7s"}]), Overloaded, 503),
        (refused(500, "INTERNAL"), UpstreamFailed, 502),
        (refused(504, "DEADLINE_EXCEEDED"), CallTimeout, 504),
        (json_answer({"promptFeedback": {"blockReason": "SAFETY"}}), UpstreamRejected, 400),
        (json_answer(b"<html>"), UpstreamFailed, 502),
        (json_answer([1]), UpstreamFailed, 502),
        (json_answer({"candidates": []}), UpstreamFailed, 502),
        (drop(), UpstreamFailed, 502),
    ],
)
async def test_each_failure_before_the_answer_has_its_class(
    upstream: Upstream, backend: GeminiBackend, step: Any, kind: type[ModelportError], status: int
) -> None:
    upstream.plan(step, step)
    deltas, error = await partly(backend, HELLO)
    assert deltas == []
    assert isinstance(error, kind)
    assert error.status == status
    if status == 503:
        assert error.retry_after_s == 7


@pytest.mark.parametrize(
    "step",
    [
        stream(content(candidate("Hel")), end=False),
        stream(content(candidate("Hel"))),
        stream(content(candidate("Hel")), {"error": {"code": 500, "message": "secret"}}),
        stream(content(candidate("Hel")), content(candidate(finish="MALFORMED_FUNCTION_CALL"))),
    ],
)
async def test_a_failure_in_a_stream_comes_after_what_had_come(
    upstream: Upstream, backend: GeminiBackend, step: Any
) -> None:
    upstream.plan(step)
    deltas, error = await partly(backend, STREAM)
    assert text_of(deltas) == "Hel"
    assert isinstance(error, UpstreamFailed)
    assert "secret" not in error.message


async def test_what_gemini_cannot_do_never_leaves_the_house(upstream: Upstream, backend: GeminiBackend) -> None:
    _, error = await partly(backend, b'{"model":"public","prompt":"x"}', operation=Operation.COMPLETION)
    assert isinstance(error, BadRequest)
    assert upstream.requests == []
