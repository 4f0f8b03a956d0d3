"""The anthropic backend against a real server: what is sent, what comes back, and what each failure becomes."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import msgspec
import pytest

from modelport.backends.anthropic import AnthropicBackend
from modelport.calls import Call, Caller, Delta, Operation, Original, Usage
from modelport.dialect.openai import fold
from modelport.errors import (
    BadRequest,
    CallTimeout,
    ModelportError,
    Overloaded,
    UpstreamFailed,
    UpstreamLimited,
    UpstreamMisconfigured,
    UpstreamRejected,
)
from modelport.kit.clock import ManualClock
from modelport.requests import ChatRequest, CompletionRequest
from modelport.settings import UpstreamSettings
from tests.anthropic_upstream import (
    MESSAGE,
    TOOL,
    error_frame,
    message_stream,
    refusal,
    text_block,
    thinking_block,
    tool_block,
)
from tests.upstream import Upstream, hang, json_answer, raw, stream_answer, then
from tests.waiting import wait_until

CALLER = Caller("org_a", "proj_a", "key_a", "live", frozenset({"inference"}), "free")
# What OpenAI's dialect calls the tokens of `tests.anthropic_upstream.USAGE`: the cached ones are in the prompt.
USED = Usage(input_tokens=15, output_tokens=3, cached_tokens=4)
HELLO: dict[str, Any] = {"model": "public", "messages": [{"role": "user", "content": "Hi"}]}
ORIGINAL: dict[str, Any] = {**HELLO, "max_tokens": 50, "thinking": {"type": "adaptive"}, "odd": [1, 2.5]}


def chat(*, original: dict[str, Any] | None = None, headers: dict[str, str] | None = None, **body: Any) -> Call:
    """A chat; with `original` one that came in as that Messages request."""
    sent = msgspec.json.encode({**HELLO, **body})
    request = msgspec.json.decode(sent, type=ChatRequest)
    call = Call(
        id="req_" + "1" * 32,
        caller=CALLER,
        endpoint="/v1/x",
        operation=Operation.CHAT,
        model="public",
        request=request,
        fields=msgspec.json.decode(sent, type=dict[str, msgspec.Raw]),
        started_us=0,
        started_s=0.0,
        deadline_s=600.0,
        stream=bool(request.stream),
        traceparent="00-" + "a" * 32 + "-" + "b" * 16 + "-01",
    )
    if original is not None:
        fields = msgspec.json.decode(msgspec.json.encode(original), type=dict[str, msgspec.Raw])
        call.original = Original("anthropic", fields, headers or {})
    return call


def passing(**body: Any) -> Call:
    """A call that came in through `/v1/messages`."""
    return chat(original={**ORIGINAL, **body}, **{"max_tokens": 50, **body})


@pytest.fixture
async def upstream() -> AsyncIterator[Upstream]:
    async with Upstream() as server:
        server.default = json_answer(MESSAGE)
        yield server


def backend_of(upstream: Upstream, **settings: Any) -> AnthropicBackend:
    row = UpstreamSettings(name="up", kind="anthropic", base_url=upstream.url, **settings)
    return AnthropicBackend(row, api_key="sk-upstream", default_output_tokens=4096, clock=ManualClock())


@pytest.fixture
async def backend(upstream: Upstream) -> AsyncIterator[AnthropicBackend]:
    backend = backend_of(upstream)
    await backend.start()
    yield backend
    await backend.close()


async def answer(backend: AnthropicBackend, call: Call, *, bound: int | None = None) -> list[Delta]:
    return [delta async for delta in backend.stream(call, model="claude-upstream", max_output_tokens=bound)]


async def partly(backend: AnthropicBackend, call: Call) -> tuple[bytes, ModelportError]:
    """What came before the error, and the error."""
    stream = backend.stream(call, model="claude-upstream", max_output_tokens=None)
    out = b""
    while True:
        try:
            out += (await anext(stream)).raw
        except ModelportError as error:
            return out, error


def chunks(deltas: list[Delta]) -> list[Any]:
    text = b"".join(delta.raw for delta in deltas).decode()
    return [json.loads(line[6:]) for line in text.split("\n") if line.startswith("data: ")]


class TestSending:
    async def test_a_chat_is_sent_as_a_message_with_our_own_key(
        self, upstream: Upstream, backend: AnthropicBackend
    ) -> None:
        await answer(backend, chat(max_tokens=7))
        request = upstream.requests[0]
        assert (request.method, request.path) == ("POST", "/v1/messages")
        assert request.json() == {
            "model": "claude-upstream",
            "max_tokens": 7,
            "messages": [{"role": "user", "content": [{"type": "text", "text": "Hi"}]}],
            "stream": False,
        }
        assert request.headers["x-api-key"] == "sk-upstream"
        assert request.headers["anthropic-version"] == "2023-06-01"
        assert request.headers["traceparent"] == "00-" + "a" * 32 + "-" + "b" * 16 + "-01"
        assert "authorization" not in request.headers

    @pytest.mark.parametrize(("own", "bound", "sent"), [(5, 50, 5), (None, 50, 50), (None, None, 4096)])
    async def test_the_bound_that_the_dialect_demands_is_always_there(
        self, upstream: Upstream, backend: AnthropicBackend, own: int | None, bound: int | None, sent: int
    ) -> None:
        await answer(backend, chat(max_completion_tokens=own), bound=bound)
        assert upstream.requests[0].json()["max_tokens"] == sent

    async def test_a_message_passes_with_nothing_but_its_model_changed(
        self, upstream: Upstream, backend: AnthropicBackend
    ) -> None:
        headers = {"anthropic-version": "2026-10-21", "anthropic-beta": "one,two"}
        await answer(backend, chat(original=ORIGINAL, headers=headers, max_tokens=50))
        request = upstream.requests[0]
        assert request.json() == {**ORIGINAL, "model": "claude-upstream"}
        assert b'"odd":[1,2.5]' in request.body
        assert {name: request.headers[name] for name in headers} == headers

    async def test_headers_of_the_row_are_not_the_callers_to_choose(self, upstream: Upstream) -> None:
        backend = backend_of(upstream, headers={"Anthropic-Version": "2026-10-21", "anthropic-beta": "mine"})
        headers = {"anthropic-version": "2023-06-01", "anthropic-beta": "theirs"}
        await answer(backend, chat(original=ORIGINAL, headers=headers, max_tokens=50))
        await answer(backend, chat())
        for request in upstream.requests:
            assert request.headers["anthropic-version"] == "2026-10-21"
            assert request.headers["anthropic-beta"] == "mine"
        await backend.close()

    async def test_a_header_that_would_break_out_of_its_line_is_refused(self, backend: AnthropicBackend) -> None:
        with pytest.raises(BadRequest, match="header"):
            await answer(backend, chat(original=ORIGINAL, headers={"anthropic-beta": "a\r\nx-api-key: b"}))

    async def test_what_is_no_chat_is_no_work_for_it(self, backend: AnthropicBackend) -> None:
        call = chat()
        call.operation = Operation.COMPLETION
        call.request = CompletionRequest(model="public", prompt="x")
        with pytest.raises(BadRequest, match="completion"):
            await answer(backend, call)


class TestTranslated:
    async def test_a_message_becomes_a_completion_with_the_cached_tokens_in_its_prompt(
        self, upstream: Upstream, backend: AnthropicBackend
    ) -> None:
        (delta,) = await answer(backend, chat())
        assert delta.usage == USED
        body = json.loads(fold([delta.raw], USED))
        assert body["choices"][0]["message"]["content"] == "Hello."
        assert body["choices"][0]["finish_reason"] == "stop"
        assert body["model"] == "public"
        assert body["usage"]["prompt_tokens"] == 15
        assert body["usage"]["prompt_tokens_details"]["cached_tokens"] == 4

    async def test_tools_become_tool_calls_whole_and_streamed(
        self, upstream: Upstream, backend: AnthropicBackend
    ) -> None:
        bare = {"type": "tool_use", "id": "toolu_2", "name": "now", "input": {}}
        upstream.plan(json_answer({**MESSAGE, "content": [TOOL, bare], "stop_reason": "tool_use"}))
        pieces = json.dumps(TOOL["input"])
        blocks = [tool_block(0, ["", pieces[:9], pieces[9:]]), tool_block(1, [""], id="toolu_2", name="now")]
        upstream.plan(stream_answer(message_stream(*blocks, reason="tool_use")))
        for call in (chat(), chat(stream=True)):
            deltas = await answer(backend, call)
            choice = json.loads(fold([delta.raw for delta in deltas], USED))["choices"][0]
            assert choice["finish_reason"] == "tool_calls"
            first, second = choice["message"]["tool_calls"]
            assert (first["id"], first["function"]["name"]) == ("toolu_1", "weather")
            assert json.loads(first["function"]["arguments"]) == TOOL["input"]
            assert second["function"] == {"name": "now", "arguments": "{}"}

    async def test_a_stream_becomes_chunks_without_thoughts(
        self, upstream: Upstream, backend: AnthropicBackend
    ) -> None:
        upstream.plan(stream_answer(message_stream(thinking_block(0, "Hm."), text_block(1, ["a", "b"]))))
        deltas = await answer(backend, chat(stream=True, stream_options={"include_usage": True}))
        seen = chunks(deltas)
        assert "".join(c["choices"][0]["delta"].get("content", "") for c in seen if c["choices"]) == "ab"
        assert seen[-1]["usage"]["total_tokens"] == 18
        assert all(chunk["model"] == "public" for chunk in seen)
        assert deltas[-1].usage == USED
        assert not any(delta.original for delta in deltas)
        assert upstream.connections == 1

    @pytest.mark.parametrize(
        ("reason", "finish"),
        [
            ("end_turn", "stop"),
            ("stop_sequence", "stop"),
            ("max_tokens", "length"),
            ("model_context_window_exceeded", "length"),
            ("refusal", "content_filter"),
            ("news", "stop"),
        ],
    )
    async def test_reasons_to_stop(
        self, upstream: Upstream, backend: AnthropicBackend, reason: str, finish: str
    ) -> None:
        upstream.plan(stream_answer(message_stream(text_block(0, ["a"]), reason=reason)))
        assert chunks(await answer(backend, chat(stream=True)))[-1]["choices"][0]["finish_reason"] == finish


class TestPassing:
    async def test_a_message_comes_back_with_the_public_name_and_nothing_else_changed(
        self, upstream: Upstream, backend: AnthropicBackend
    ) -> None:
        """Also where a tool's input has a member of the same name."""
        upstream.plan(json_answer({**MESSAGE, "content": [TOOL], "odd": 1}))
        (delta,) = await answer(backend, passing())
        assert json.loads(delta.raw) == {**MESSAGE, "content": [TOOL], "odd": 1, "model": "public"}
        assert (delta.whole, delta.original, delta.usage) == (True, True, USED)

    async def test_a_stream_passes_byte_for_byte_but_for_the_name_and_the_terminal_event(
        self, upstream: Upstream, backend: AnthropicBackend
    ) -> None:
        events = message_stream(thinking_block(0, "Hm."), text_block(1, ["a", "b"]), tool_block(2, ['{"a":', "1}"]))
        upstream.plan(stream_answer(events))
        deltas = await answer(backend, passing(stream=True))
        expected = b"".join(events[:-1]).replace(b"claude-upstream", b"public")
        assert b"".join(delta.raw for delta in deltas) == expected
        assert deltas[-1].usage == USED
        assert all(delta.original for delta in deltas)

    async def test_what_was_produced_is_estimated_until_the_server_tells(
        self, upstream: Upstream, backend: AnthropicBackend
    ) -> None:
        events = message_stream(text_block(0, ["word " * 80, "word " * 80]))
        for call in (passing(stream=True, max_tokens=900), chat(stream=True)):
            upstream.plan(then(stream_answer(events[:4], end=False), hang()))
            stream = backend.stream(call, model="m", max_output_tokens=None)
            text = b""
            while b"word" not in text:
                delta = await anext(stream)
                text += delta.raw
            assert delta.usage is not None
            assert (delta.usage.input_tokens, delta.usage.cached_tokens, delta.usage.exact) == (15, 4, False)
            assert 95 <= delta.usage.output_tokens <= 105
            await stream.aclose()
        await wait_until(lambda: upstream.open == 0, "the upstream sees the hang-ups")

    async def test_no_estimate_exceeds_what_the_server_was_allowed(
        self, upstream: Upstream, backend: AnthropicBackend
    ) -> None:
        """A budget's ceiling would cut the answer off."""
        upstream.plan(stream_answer(message_stream(text_block(0, ["word " * 80]))))
        deltas = await answer(backend, passing(stream=True))
        assert max(delta.usage.output_tokens for delta in deltas if delta.usage is not None) <= 50


class TestFailures:
    @pytest.mark.parametrize(
        ("step", "kind", "status"),
        [
            (refusal(400, "invalid_request_error"), UpstreamRejected, 400),
            (refusal(413, "request_too_large"), UpstreamRejected, 413),
            (refusal(404, "not_found_error"), UpstreamRejected, 404),
            (refusal(401, "authentication_error"), UpstreamMisconfigured, 502),
            (refusal(402, "billing_error"), UpstreamMisconfigured, 502),
            (refusal(403, "permission_error"), UpstreamMisconfigured, 502),
            (refusal(429, "rate_limit_error", retry_after="7"), UpstreamLimited, 503),
            (refusal(529, "overloaded_error"), Overloaded, 503),
            (refusal(500, "api_error"), UpstreamFailed, 502),
            (refusal(504, "timeout_error"), CallTimeout, 504),
            (json_answer(b"<html>"), UpstreamFailed, 502),
            (json_answer({"type": "message"}), UpstreamFailed, 502),
            (json_answer({**MESSAGE, "usage": None}), UpstreamFailed, 502),
            (json_answer({"type": "error", "error": {"type": "overloaded_error"}}), Overloaded, 503),
        ],
    )
    async def test_each_refusal_has_its_class(
        self, upstream: Upstream, backend: AnthropicBackend, step: Any, kind: type[ModelportError], status: int
    ) -> None:
        for call in (chat(), passing()):
            upstream.plan(step)
            with pytest.raises(ModelportError) as refused:
                await answer(backend, call)
            assert type(refused.value) is kind
            assert refused.value.status == status
            assert (refused.value.message == "No.") is (kind is UpstreamRejected)

    async def test_a_limit_says_when_to_come_back(self, upstream: Upstream, backend: AnthropicBackend) -> None:
        upstream.plan(refusal(429, "rate_limit_error", retry_after="7"))
        with pytest.raises(Overloaded) as refused:
            await answer(backend, chat())
        assert refused.value.retry_after_s == 7.0

    @pytest.mark.parametrize(
        ("tail", "kind"),
        [
            ([error_frame("overloaded_error")], Overloaded),
            ([error_frame("rate_limit_error")], UpstreamLimited),
            ([error_frame("api_error")], UpstreamFailed),
            ([b"event: content_block_delta\ndata: {no\n\ndata: {no\n\n"], UpstreamFailed),
            ([b"data: 5\n\n"], UpstreamFailed),
            ([], UpstreamFailed),
        ],
    )
    async def test_a_stream_that_breaks_is_a_failure_after_what_came(
        self, upstream: Upstream, backend: AnthropicBackend, tail: list[bytes], kind: type[ModelportError]
    ) -> None:
        for call in (chat(stream=True), passing(stream=True)):
            upstream.plan(stream_answer([*message_stream(text_block(0, ["said"]))[:4], *tail]))
            out, error = await partly(backend, call)
            assert type(error) is kind
            assert b"said" in out
            assert "secret" not in error.message

    async def test_a_cut_connection_is_a_failure(self, upstream: Upstream, backend: AnthropicBackend) -> None:
        upstream.plan(then(stream_answer(message_stream(text_block(0, ["said"]))[:4], end=False), raw(close=True)))
        out, error = await partly(backend, passing(stream=True))
        assert b"said" in out
        assert isinstance(error, UpstreamFailed)

    async def test_an_end_without_the_terminal_event_is_good_after_a_reason(
        self, upstream: Upstream, backend: AnthropicBackend
    ) -> None:
        upstream.plan(stream_answer(message_stream(text_block(0, ["a"]))[:-1]))
        assert (await answer(backend, passing(stream=True)))[-1].usage == USED
