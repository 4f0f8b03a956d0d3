"""The openai backend against a real server: what is forwarded, what comes back, and what each failure becomes."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import msgspec
import pytest

from modelport.backends.openai import OpenAIBackend
from modelport.calls import Call, Caller, Delta, Operation, Usage
from modelport.errors import BadRequest, CallTimeout, ModelportError, Overloaded, UpstreamFailed, UpstreamRejected
from modelport.kit.clock import ManualClock
from modelport.requests import ChatRequest, CompletionRequest, EmbeddingRequest, PredictRequest
from modelport.settings import UpstreamSettings
from tests.upstream import (
    COMPLETION,
    Upstream,
    chat_events,
    error_answer,
    event,
    hang,
    head,
    json_answer,
    raw,
    stream_answer,
    then,
)
from tests.waiting import wait_until

CALLER = Caller("org_a", "proj_a", "key_a", "live", frozenset({"inference"}), "free")
USAGE = {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10}
TYPES: dict[Operation, Any] = {
    Operation.CHAT: ChatRequest,
    Operation.COMPLETION: CompletionRequest,
    Operation.EMBEDDING: EmbeddingRequest,
    Operation.PREDICT: PredictRequest,
}
HELLO = b'{"model":"public","messages":[{"role":"user","content":"Hi"}]}'
STREAM = b'{"model":"public","messages":[{"role":"user","content":"Hi"}],"stream":true}'
WITH_USAGE = STREAM[:-1] + b',"stream_options":{"include_usage":true}}'


def call_of(body: bytes, operation: Operation = Operation.CHAT, *, deadline_s: float = 600.0) -> Call:
    request = msgspec.json.decode(body, type=TYPES[operation])
    return Call(
        id="req_" + "1" * 32,
        caller=CALLER,
        endpoint="/v1/x",
        operation=operation,
        model=getattr(request, "model", "public"),
        request=request,
        fields=msgspec.json.decode(body, type=dict[str, msgspec.Raw]),
        started_us=0,
        started_s=0.0,
        deadline_s=deadline_s,
        stream=bool(getattr(request, "stream", False)),
        traceparent="00-" + "a" * 32 + "-" + "b" * 16 + "-01",
    )


@pytest.fixture
async def upstream() -> AsyncIterator[Upstream]:
    async with Upstream() as server:
        yield server


@pytest.fixture
async def backend(upstream: Upstream) -> AsyncIterator[OpenAIBackend]:
    settings = UpstreamSettings(name="up", base_url=upstream.url, headers={"x-team": "blue"})
    backend = OpenAIBackend(settings, api_key="sk-upstream", clock=ManualClock())
    await backend.start()
    yield backend
    await backend.close()


async def answer(backend: OpenAIBackend, call: Call, *, bound: int | None = None) -> list[Delta]:
    return [delta async for delta in backend.stream(call, model="upstream-model", max_output_tokens=bound)]


async def partly(backend: OpenAIBackend, call: Call) -> tuple[list[Delta], ModelportError]:
    """The deltas before the error, and the error."""
    stream = backend.stream(call, model="upstream-model", max_output_tokens=None)
    deltas: list[Delta] = []
    while True:
        try:
            deltas.append(await anext(stream))
        except ModelportError as error:
            return deltas, error


def chunks(deltas: list[Delta]) -> list[Any]:
    text = b"".join(delta.raw for delta in deltas).decode()
    return [json.loads(line[6:]) for line in text.split("\n") if line.startswith("data: ")]


class TestForwarding:
    async def test_members_that_nobody_knows_arrive_byte_for_byte(
        self, upstream: Upstream, backend: OpenAIBackend
    ) -> None:
        odd = b'"odd":{"a": [1,  2.50, 1e5],"b":"\\u00e9"},"metadata":{"team":"x"}'
        await answer(backend, call_of(HELLO[:-1] + b"," + odd + b"}"))
        assert odd in upstream.requests[0].body
        assert upstream.requests[0].json()["model"] == "upstream-model"
        assert upstream.requests[0].path == "/v1/chat/completions"

    async def test_the_upstreams_own_key_is_sent_with_the_trace(
        self, upstream: Upstream, backend: OpenAIBackend
    ) -> None:
        await answer(backend, call_of(HELLO))
        headers = upstream.requests[0].headers
        assert headers["authorization"] == "Bearer sk-upstream"
        assert (headers["x-team"], headers["content-type"]) == ("blue", "application/json")
        assert headers["traceparent"] == "00-" + "a" * 32 + "-" + "b" * 16 + "-01"
        assert headers["x-request-id"] == "req_" + "1" * 32

    async def test_a_trace_that_would_break_out_of_its_line_is_left_out(
        self, upstream: Upstream, backend: OpenAIBackend
    ) -> None:
        call = call_of(HELLO)
        call.traceparent = "00-x\r\nauthorization: mine"
        await answer(backend, call)
        assert "traceparent" not in upstream.requests[0].headers
        assert upstream.requests[0].headers["authorization"] == "Bearer sk-upstream"

    @pytest.mark.parametrize("operation", [Operation.COMPLETION, Operation.EMBEDDING])
    async def test_other_operations_have_their_paths(
        self, upstream: Upstream, backend: OpenAIBackend, operation: Operation
    ) -> None:
        body, path, result = {
            Operation.COMPLETION: (b'{"model":"public","prompt":"a"}', "/v1/completions", COMPLETION),
            Operation.EMBEDDING: (b'{"model":"public","input":"a"}', "/v1/embeddings", {"data": [], "model": "m"}),
        }[operation]
        upstream.plan(json_answer(result))
        await answer(backend, call_of(body, operation))
        assert upstream.requests[0].path == path

    async def test_a_prediction_is_no_work_for_it(self, backend: OpenAIBackend) -> None:
        with pytest.raises(BadRequest, match="predict"):
            await answer(backend, call_of(b'{"inputs":[1]}', Operation.PREDICT))

    @pytest.mark.parametrize(
        ("own", "sent"), [(b"", 50), (b',"max_tokens":5', 5), (b',"max_completion_tokens":6', None)]
    )
    async def test_a_bound_is_added_only_where_the_caller_set_none(
        self, upstream: Upstream, backend: OpenAIBackend, own: bytes, sent: int | None
    ) -> None:
        await answer(backend, call_of(HELLO[:-1] + own + b"}"), bound=50)
        assert upstream.requests[0].json().get("max_tokens") == sent

    @pytest.mark.parametrize(
        ("options", "sent"),
        [
            (b"", {"include_usage": True}),
            (b',"stream_options":null', {"include_usage": True}),
            (b',"stream_options":{"include_usage":false,"odd":1}', {"include_usage": True, "odd": 1}),
        ],
    )
    async def test_usage_is_always_asked_of_a_stream(
        self, upstream: Upstream, backend: OpenAIBackend, options: bytes, sent: Any
    ) -> None:
        upstream.plan(stream_answer(chat_events(["a"], usage=USAGE)))
        await answer(backend, call_of(STREAM[:-1] + options + b"}"))
        assert upstream.requests[0].json()["stream_options"] == sent

    def test_a_header_that_frames_the_request_can_not_be_configured(self) -> None:
        settings = UpstreamSettings(name="up", base_url="http://x/v1", headers={"Content-Length": "5"})
        with pytest.raises(ValueError, match="content-length"):
            OpenAIBackend(settings, api_key="")


class TestWhole:
    async def test_the_body_passes_through_with_the_public_name(
        self, upstream: Upstream, backend: OpenAIBackend
    ) -> None:
        said = 'say "model":"upstream-model" and \\"model\\"'
        body = json.loads(json.dumps(COMPLETION))
        body["choices"][0]["message"]["content"] = said
        data = json.dumps(body, separators=(",", ":")).encode()
        upstream.plan(json_answer(data))
        (delta,) = await answer(backend, call_of(HELLO))
        assert delta.raw == data.replace(b'"model":"upstream-model"', b'"model":"public"', 1)
        assert json.loads(delta.raw)["choices"][0]["message"]["content"] == said
        assert (delta.whole, delta.usage) == (True, Usage(9, 2))

    @pytest.mark.parametrize("form", [b'"model" : "org\\/other"', b'"model": "org/other"', b'"model":"org/other"'])
    async def test_the_name_is_found_however_it_is_written(
        self, upstream: Upstream, backend: OpenAIBackend, form: bytes
    ) -> None:
        upstream.plan(json_answer(b'{"choices":[], ' + form + b"}"))
        (delta,) = await answer(backend, call_of(HELLO))
        assert json.loads(delta.raw)["model"] == "public"

    async def test_usage_that_is_not_reported_is_estimated_and_says_so(
        self, upstream: Upstream, backend: OpenAIBackend
    ) -> None:
        upstream.plan(json_answer({**COMPLETION, "usage": None}))
        (delta,) = await answer(backend, call_of(HELLO))
        assert delta.usage is not None
        assert (delta.usage.exact, delta.usage.input_tokens > 0, delta.usage.output_tokens > 0) == (False, True, True)

    @pytest.mark.parametrize("body", [b"", b"<html>", b"[]", b"{}", b'{"choices":{}}', b'{"choices":[', b"null"])
    async def test_what_is_no_answer_is_a_failed_upstream(
        self, upstream: Upstream, backend: OpenAIBackend, body: bytes
    ) -> None:
        upstream.plan(json_answer(body))
        with pytest.raises(UpstreamFailed, match="'up' sent something that is no answer"):
            await answer(backend, call_of(HELLO))

    async def test_an_error_in_the_place_of_an_answer_is_an_error(
        self, upstream: Upstream, backend: OpenAIBackend
    ) -> None:
        upstream.plan(json_answer({"error": {"message": "secret", "code": 500}}))
        with pytest.raises(UpstreamFailed, match="failed while it answered") as failed:
            await answer(backend, call_of(HELLO))
        assert "secret" not in failed.value.message

    async def test_the_connection_is_kept(self, upstream: Upstream, backend: OpenAIBackend) -> None:
        for _ in range(3):
            await answer(backend, call_of(HELLO))
        assert upstream.connections == 1


class TestStream:
    async def test_events_arrive_as_they_come_without_the_usage_nobody_asked_for(
        self, upstream: Upstream, backend: OpenAIBackend
    ) -> None:
        upstream.plan(stream_answer(chat_events(["a", "b", "c"], usage=USAGE)))
        deltas = await answer(backend, call_of(STREAM))
        assert "".join(c["choices"][0]["delta"].get("content", "") for c in chunks(deltas)) == "abc"
        assert all("usage" not in chunk and chunk["model"] == "public" for chunk in chunks(deltas))
        assert b"[DONE]" not in b"".join(delta.raw for delta in deltas)
        assert deltas[-1].usage == Usage(7, 3)
        assert upstream.connections == 1

    async def test_usage_is_left_in_for_a_caller_who_asked(self, upstream: Upstream, backend: OpenAIBackend) -> None:
        upstream.plan(stream_answer(chat_events(["a", "b", "c"], usage=USAGE)))
        seen = chunks(await answer(backend, call_of(WITH_USAGE)))
        assert [chunk["usage"] for chunk in seen] == [None] * 5 + [USAGE]
        assert seen[-1]["choices"] == []

    async def test_what_was_produced_is_counted_until_the_upstream_tells(
        self, upstream: Upstream, backend: OpenAIBackend
    ) -> None:
        """A caller that hangs up after two tokens is charged for two."""
        upstream.plan(then(stream_answer(chat_events(["a", "b"])[:3], end=False), hang()))
        stream = backend.stream(call_of(STREAM), model="m", max_output_tokens=None)
        text = b""
        while b'"b"' not in text:
            delta = await anext(stream)
            text += delta.raw
        assert delta.usage is not None
        assert (delta.usage.output_tokens, delta.usage.exact, delta.usage.input_tokens > 0) == (2, False, True)
        await stream.aclose()
        await wait_until(lambda: upstream.open == 0, "the upstream sees the hang-up")

    async def test_the_first_delta_that_counts_is_the_first_with_output(
        self, upstream: Upstream, backend: OpenAIBackend
    ) -> None:
        events = chat_events(["a"])
        upstream.plan(then(stream_answer(events[:1], end=False), hang()))
        stream = backend.stream(call_of(STREAM), model="m", max_output_tokens=None)
        assert not (await anext(stream)).timed
        await stream.aclose()
        upstream.plan(stream_answer([b"".join(events)]))
        assert (await answer(backend, call_of(STREAM)))[0].timed

    async def test_an_upstream_without_usage_is_counted_and_the_caller_told(
        self, upstream: Upstream, backend: OpenAIBackend
    ) -> None:
        upstream.plan(stream_answer(chat_events(["a", "b"])))
        deltas = await answer(backend, call_of(WITH_USAGE))
        last = chunks(deltas)[-1]
        assert (last["choices"], last["usage"]["completion_tokens"], last["model"]) == ([], 2, "public")
        assert deltas[-1].usage is not None
        assert deltas[-1].usage.exact is False

    async def test_an_end_without_done_is_good_after_a_finish(self, upstream: Upstream, backend: OpenAIBackend) -> None:
        upstream.plan(stream_answer(chat_events(["a"])[:-1]))
        assert len(chunks(await answer(backend, call_of(STREAM)))) == 3

    @pytest.mark.parametrize("parts", [chat_events(["a"])[:2], [b""], [b": hello\n\n"], [b"<html>"]])
    async def test_an_end_without_a_finish_is_a_failure_after_what_came(
        self, upstream: Upstream, backend: OpenAIBackend, parts: list[bytes]
    ) -> None:
        upstream.plan(stream_answer([part for part in parts if part]))
        deltas, error = await partly(backend, call_of(STREAM))
        assert isinstance(error, UpstreamFailed)
        assert "ended its answer too early" in error.message
        assert len(chunks(deltas)) == (2 if len(parts) == 2 else 0)

    async def test_a_cut_connection_is_a_failure_after_what_came(
        self, upstream: Upstream, backend: OpenAIBackend
    ) -> None:
        events = chat_events(["a", "b"])
        upstream.plan(then(stream_answer(events[:2], end=False), raw(close=True)))
        deltas, error = await partly(backend, call_of(STREAM))
        assert len(chunks(deltas)) == 2
        assert "before its end" in error.message

    @pytest.mark.parametrize(
        ("frame", "kind"),
        [
            (event({"error": {"message": "boom", "code": 500}}), UpstreamFailed),
            (event({"error": "boom"}), UpstreamFailed),
            (b'event: error\ndata: {"message":"boom"}\n\n', UpstreamFailed),
            (event({"object": "error", "message": "boom", "code": 400}), UpstreamRejected),
            (b"data: {not json\n\n", UpstreamFailed),
            (b"data: 5\n\n", UpstreamFailed),
        ],
    )
    async def test_an_error_inside_ends_the_stream_after_what_came(
        self, upstream: Upstream, backend: OpenAIBackend, frame: bytes, kind: type[ModelportError]
    ) -> None:
        upstream.plan(then(stream_answer([*chat_events(["a"])[:2], frame], end=False), hang()))
        deltas, error = await partly(backend, call_of(STREAM))
        assert type(error) is kind
        assert (error.message == "boom") is (kind is UpstreamRejected)
        assert len(chunks(deltas)) == 2
        await wait_until(lambda: upstream.open == 0, "the upstream is hung up on")

    async def test_200_hang_ups_at_any_point_leave_no_connection_and_no_task(
        self, upstream: Upstream, backend: OpenAIBackend
    ) -> None:
        upstream.default = then(stream_answer(chat_events(list("abcdefgh"))[:9], end=False), hang())
        tasks = len(asyncio.all_tasks())

        async def leave(after: int) -> None:
            stream = backend.stream(call_of(STREAM), model="m", max_output_tokens=None)
            seen = 0
            while seen < after:
                seen += (await anext(stream)).raw.count(b"\n\n")
            await stream.aclose()

        for after in range(1, 9):
            await asyncio.gather(*(leave(after) for _ in range(25)))
        await wait_until(lambda: upstream.open == 0, "the upstream has seen every hang-up")
        assert backend.pool.open_connections == 0
        await wait_until(lambda: len(asyncio.all_tasks()) == tasks, "no task is left")

    async def test_a_cancelled_call_hangs_up(self, upstream: Upstream, backend: OpenAIBackend) -> None:
        upstream.plan(hang())
        call = asyncio.create_task(answer(backend, call_of(STREAM)))
        await wait_until(lambda: len(upstream.requests) == 1, "the request has arrived")
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        await wait_until(lambda: upstream.open == 0, "the upstream sees the hang-up")


class TestRefusals:
    @pytest.mark.parametrize("code", [400, 404, 409, 413, 422])
    async def test_a_refused_request_keeps_the_upstreams_words(
        self, upstream: Upstream, backend: OpenAIBackend, code: int
    ) -> None:
        upstream.plan(error_answer(code, "Too many tokens. " * 500))
        with pytest.raises(UpstreamRejected) as refused:
            await answer(backend, call_of(STREAM))
        error = refused.value
        assert (error.status, error.code, error.type, error.param) == (code, "why", "some_error", "p")
        assert error.message.startswith("Too many tokens. ")
        assert len(error.message) == 1_000

    @pytest.mark.parametrize(
        ("body", "message"),
        [
            ({"error": "words"}, "words"),
            ({"message": "words"}, "words"),
            ({"detail": "words"}, "words"),
            ({"detail": [{"msg": "words"}]}, '[{"msg":"words"}]'),
            ({"error": {"code": 5}}, "The model's server refused the request"),
        ],
    )
    async def test_other_servers_forms_are_understood(
        self, upstream: Upstream, backend: OpenAIBackend, body: Any, message: str
    ) -> None:
        upstream.plan(json_answer(body, 400))
        with pytest.raises(UpstreamRejected) as refused:
            await answer(backend, call_of(HELLO))
        assert refused.value.message == message

    @pytest.mark.parametrize("code", [401, 402, 403])
    async def test_refused_credentials_are_the_operators_affair(
        self, upstream: Upstream, backend: OpenAIBackend, code: int
    ) -> None:
        upstream.plan(error_answer(code, "Incorrect API key provided: sk-upstream"))
        with pytest.raises(UpstreamFailed, match="refused our credentials") as refused:
            await answer(backend, call_of(HELLO))
        assert refused.value.status == 502
        assert "sk-upstream" not in refused.value.message

    @pytest.mark.parametrize(
        ("header", "seconds"),
        [
            ({"retry_after": "7"}, 7.0),
            ({"retry_after": "Thu, 01 Jan 2026 00:00:30 GMT"}, 30.0),
            ({"retry_after": "9e9"}, 600.0),
            ({}, 1.0),
            ({"retry_after": "x"}, 1.0),
            ({"retry_after": "-4"}, 1.0),
            ({"retry_after": "nan"}, 1.0),
        ],
    )
    async def test_a_limit_says_when_to_come_back(
        self, upstream: Upstream, backend: OpenAIBackend, header: dict[str, str], seconds: float
    ) -> None:
        upstream.plan(error_answer(429, **header))
        with pytest.raises(Overloaded) as refused:
            await answer(backend, call_of(HELLO))
        assert refused.value.retry_after_s == seconds

    @pytest.mark.parametrize(
        ("code", "kind"),
        [(408, CallTimeout), (504, CallTimeout), (500, UpstreamFailed), (503, UpstreamFailed), (302, UpstreamFailed)],
    )
    async def test_failures_of_the_upstream(
        self, upstream: Upstream, backend: OpenAIBackend, code: int, kind: type[ModelportError]
    ) -> None:
        upstream.plan(error_answer(code, "secret"))
        with pytest.raises(kind) as failed:
            await answer(backend, call_of(HELLO))
        assert "secret" not in failed.value.message
        assert "secret" in (failed.value.internal or "")

    async def test_a_404_that_no_model_wrote_is_a_wrong_address(
        self, upstream: Upstream, backend: OpenAIBackend
    ) -> None:
        upstream.plan(raw(head(404, content_length=9) + b"Not Found"))
        with pytest.raises(UpstreamFailed, match="no model gives"):
            await answer(backend, call_of(HELLO))

    async def test_a_call_whose_time_is_over_is_not_sent(self, upstream: Upstream, backend: OpenAIBackend) -> None:
        with pytest.raises(CallTimeout):
            await answer(backend, call_of(HELLO, deadline_s=0.0))
        assert upstream.requests == []

    async def test_a_silent_upstream_ends_with_the_first_token_timeout(self, upstream: Upstream) -> None:
        settings = UpstreamSettings(name="up", base_url=upstream.url, first_token_timeout_s=0.05)
        backend = OpenAIBackend(settings, api_key="", clock=ManualClock())
        upstream.plan(hang())
        with pytest.raises(CallTimeout, match="sent nothing"):
            await answer(backend, call_of(STREAM))
        await backend.close()
