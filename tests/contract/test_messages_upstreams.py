"""Both SDKs over upstreams of both dialects: what each side sees, what is charged, and how it ends."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from decimal import Decimal
from typing import Any

import anthropic
import openai
import pytest
import pytest_asyncio
from anthropic import AsyncAnthropic
from openai import AsyncOpenAI

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
from tests.serving import Server
from tests.upstream import (
    COMPLETION,
    Step,
    Upstream,
    chat_chunk,
    chat_events,
    error_answer,
    event,
    hang,
    json_answer,
    raw,
    stream_answer,
    then,
    wait_for,
)
from tests.waiting import wait_until

# One server and its upstreams for the whole file.
pytestmark = pytest.mark.asyncio(loop_scope="module")
QUESTION: Any = [{"role": "user", "content": "Hello?"}]
CLASSIC = {"anthropic-version": "2023-06-01"}


class Scene:
    """A server between two SDKs and two upstreams: `claude` is Anthropic's dialect, `gpt` OpenAI's."""

    def __init__(self, server: Server, claude: Upstream, gpt: Upstream) -> None:
        self.server = server
        self.claude = claude
        self.gpt = gpt
        key = server.credentials["api_key"]
        self.anthropic = AsyncAnthropic(base_url=server.base_url, api_key=key, max_retries=0)
        self.openai = AsyncOpenAI(base_url=f"{server.base_url}/v1", api_key=key, max_retries=0)

    async def receipt(self, call_id: str) -> dict[str, Any]:
        def found() -> tuple[int, Any]:
            return self.server.get(f"/v1/requests/{call_id}", key=self.server.credentials["api_key"])

        async def is_there() -> bool:
            return (await asyncio.to_thread(found))[0] == 200

        await wait_until(is_there, "the call is in the books")
        receipt: dict[str, Any] = (await asyncio.to_thread(found))[1]
        return receipt


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Scene]:
    async with Upstream() as claude, Upstream() as gpt:
        config = f"""
default_models = false
server = {{ stream_keep_alive_s = 0.2 }}

[[upstreams]]
name = "claude"
kind = "anthropic"
base_url = "{claude.url}"
api_key_env = "CLAUDE_KEY"
breaker.enabled = false

[[upstreams]]
name = "gpt"
base_url = "{gpt.url}"
breaker.enabled = false

[[models]]
id = "claude"
targets = [{{ upstream = "claude", model = "claude-upstream" }}]
route.retry.attempts = 1
prices = {{ input_usd_per_mtok = "3", cached_usd_per_mtok = "0.3", output_usd_per_mtok = "15" }}

[[models]]
id = "gpt"
targets = [{{ upstream = "gpt", model = "upstream-model" }}]
route.retry.attempts = 1

[[models]]
id = "kept-claude"
targets = [{{ upstream = "claude", model = "claude-upstream" }}]
route.retry.attempts = 1
cache = {{}}

[[models]]
id = "kept-gpt"
targets = [{{ upstream = "gpt", model = "upstream-model" }}]
fallbacks = ["claude"]
route.retry.attempts = 1
cache = {{}}

[[models]]
id = "both"
targets = [{{ upstream = "claude", model = "claude-upstream" }}]
fallbacks = ["gpt"]
route.retry.attempts = 2
"""
        server = Server(tmp_path_factory.mktemp("upstreams"), config=config, env={"CLAUDE_KEY": "sk-claude"})
        await asyncio.to_thread(server.start)
        scene = Scene(server, claude, gpt)
        yield scene
        await scene.anthropic.close()
        await scene.openai.close()
        assert await asyncio.to_thread(server.stop) == 0


@pytest.fixture
def scene(shared: Scene) -> Scene:
    """The shared one, with nothing planned and nothing received."""
    shared.claude.requests.clear()
    shared.gpt.requests.clear()
    return shared


async def test_anthropics_sdk_over_anthropics_own(scene: Scene) -> None:
    scene.claude.plan(json_answer({**MESSAGE, "content": [TOOL]}))
    raw_answer = await scene.anthropic.messages.with_raw_response.create(
        model="claude",
        max_tokens=9,
        messages=QUESTION,
        system=[{"type": "text", "text": "Be brief.", "cache_control": {"type": "ephemeral"}}],
        thinking={"type": "adaptive"},
        extra_headers={"anthropic-beta": "some-beta"},
        extra_body={"odd": 1},
    )
    message = await raw_answer.parse()
    assert message.model == "claude"
    assert message.content[0].to_dict() == TOOL
    request = scene.claude.requests[0]
    sent = request.json()
    assert sent["system"][0]["cache_control"] == {"type": "ephemeral"}
    assert (sent["model"], sent["max_tokens"], sent["thinking"], sent["odd"]) == (
        "claude-upstream",
        9,
        {"type": "adaptive"},
        1,
    )
    assert request.headers["anthropic-version"] == "2026-10-21"
    assert request.headers["anthropic-beta"] == "some-beta"
    assert request.headers["x-api-key"] == "sk-claude"
    # 11 fresh, 4 cached, 3 out.
    cost = (11 * Decimal(3) + 4 * Decimal("0.3") + 3 * Decimal(15)) / 10**6
    assert Decimal(raw_answer.headers["x-cost-usd"]) == cost
    receipt = await scene.receipt(raw_answer.headers["request-id"])
    assert [receipt[name] for name in ("input_tokens", "cached_tokens", "output_tokens")] == [15, 4, 3]


async def test_a_stream_of_anthropics_own_passes_with_its_thoughts(scene: Scene) -> None:
    blocks = [thinking_block(0, "Hm."), text_block(1, ["Good", " day"]), tool_block(2, ['{"city":', '"Oslo"}'])]
    scene.claude.plan(stream_answer(message_stream(*blocks, reason="tool_use")))
    async with scene.anthropic.messages.stream(model="claude", max_tokens=9, messages=QUESTION) as stream:
        message = await stream.get_final_message()
        call_id = stream.response.headers["request-id"]
    assert [block.type for block in message.content] == ["thinking", "text", "tool_use"]
    assert message.model == "claude"
    assert message.stop_reason == "tool_use"
    assert message.usage.output_tokens == 3
    receipt = await scene.receipt(call_id)
    assert [receipt[name] for name in ("status", "input_tokens", "output_tokens", "exact")] == [200, 15, 3, True]


async def test_openais_sdk_over_anthropics_own(scene: Scene) -> None:
    scene.claude.plan(json_answer(MESSAGE), stream_answer(message_stream(text_block(0, ["Good", " day"]))))
    answer = await scene.openai.chat.completions.create(model="claude", messages=QUESTION)
    assert answer.choices[0].message.content == "Hello."
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (15, 3)
    stream = await scene.openai.chat.completions.create(model="claude", messages=QUESTION, stream=True)
    assert "".join([chunk.choices[0].delta.content or "" async for chunk in stream]) == "Good day"


async def test_anthropics_sdk_over_openais_own(scene: Scene) -> None:
    usage = {"prompt_tokens": 7, "completion_tokens": 2, "total_tokens": 9}
    scene.gpt.plan(json_answer(COMPLETION), stream_answer(chat_events(["Good", " day"], usage=usage)))
    message = await scene.anthropic.messages.create(
        model="gpt", max_tokens=9, messages=QUESTION, stop_sequences=["X"], metadata={"user_id": "ann"}
    )
    assert message.content[0].to_dict() == {"type": "text", "text": "Hello."}
    assert (message.model, message.usage.input_tokens, message.usage.output_tokens) == ("gpt", 9, 2)
    sent = scene.gpt.requests[0].json()
    assert (sent["model"], sent["max_tokens"], sent["stop"], sent["user"]) == ("upstream-model", 9, ["X"], "ann")
    assert "metadata" not in sent
    async with scene.anthropic.messages.stream(model="gpt", max_tokens=9, messages=QUESTION) as stream:
        final = await stream.get_final_message()
    assert final.content[0].to_dict() == {"type": "text", "text": "Good day"}
    assert (final.usage.input_tokens, final.usage.output_tokens) == (7, 2)


async def test_anthropic_itself_counts_and_others_are_estimated(scene: Scene) -> None:
    scene.claude.plan(json_answer({"input_tokens": 4711}), json_answer(b"{}"), refusal(400, "invalid_request_error"))
    counted = await scene.anthropic.messages.count_tokens(model="claude", messages=QUESTION, system="Be brief.")
    assert counted.input_tokens == 4711
    request = scene.claude.requests[0]
    assert (request.path, request.headers["anthropic-version"]) == ("/v1/messages/count_tokens", "2026-10-21")
    assert request.json() == {"model": "claude-upstream", "messages": QUESTION, "system": "Be brief."}
    with pytest.raises(anthropic.InternalServerError):
        await scene.anthropic.messages.count_tokens(model="claude", messages=QUESTION)
    with pytest.raises(anthropic.BadRequestError):
        await scene.anthropic.messages.count_tokens(model="claude", messages=QUESTION)
    scene.claude.plan(json_answer({"input_tokens": 17}))
    translated = await scene.openai.responses.input_tokens.count(model="claude", input="Hi", instructions="Be brief.")
    assert translated.input_tokens == 17
    assert set(scene.claude.requests[-1].json()) == {"model", "messages", "system"}
    estimated = await scene.anthropic.messages.count_tokens(model="gpt", messages=QUESTION)
    assert estimated.input_tokens > 0
    assert not scene.gpt.requests


@pytest.mark.parametrize("stream", [False, True])
async def test_a_fallback_of_the_other_dialect_answers_in_the_callers(scene: Scene, stream: bool) -> None:
    """The original goes to the one, the translation to the other; the answer names the model that gave it."""
    scene.claude.plan(refusal(529, "overloaded_error"))
    scene.gpt.plan(stream_answer(chat_events(["Hello", "."])) if stream else json_answer(COMPLETION))
    asked: Any = {"model": "both", "max_tokens": 9, "messages": QUESTION}
    if stream:
        async with scene.anthropic.messages.stream(**asked) as events:
            message = await events.get_final_message()
            headers = events.response.headers
    else:
        raw_answer = await scene.anthropic.messages.with_raw_response.create(**asked)
        message, headers = await raw_answer.parse(), raw_answer.headers
    assert message.content[0].to_dict() == {"type": "text", "text": "Hello."}
    assert message.model == "gpt"
    assert (headers["x-model-requested"], headers["x-model-served"]) == ("both", "gpt")
    assert headers["x-fallback"]
    assert scene.claude.requests[0].json()["messages"] == QUESTION
    assert scene.gpt.requests[0].json()["max_tokens"] == 9


async def test_a_spent_budget_is_told_as_anthropics_sdk_knows_it(scene: Scene) -> None:
    def spend_nothing() -> str:
        owner = scene.server.credentials["api_key"]
        made = json.loads(scene.server.request("POST", "/v1/api_keys", body={"name": "poor"}, key=owner)[2])
        budget = {"scope": "key", "target": made["id"], "period": "total", "hard_limit_usd": "0.000001"}
        assert scene.server.request("POST", "/v1/budgets", body=budget, key=owner)[0] == 201
        return str(made["key"])

    poor = scene.anthropic.with_options(api_key=await asyncio.to_thread(spend_nothing))
    with pytest.raises(anthropic.PaymentRequiredError) as refused:
        await poor.messages.create(model="claude", max_tokens=900, messages=QUESTION)
    assert refused.value.type == "billing_error"
    assert not scene.claude.requests


async def test_stored_answers_are_given_in_the_callers_dialect_streamed_or_not(scene: Scene) -> None:
    asked: Any = {"model": "kept-gpt", "max_tokens": 9, "messages": QUESTION}
    scene.gpt.plan(json_answer(COMPLETION))
    for outcome in ("MISS", "HIT"):
        raw_answer = await scene.anthropic.messages.with_raw_response.create(**asked)
        assert raw_answer.headers["x-cache"] == outcome
        assert (await raw_answer.parse()).content[0].to_dict() == {"type": "text", "text": "Hello."}
    async with scene.anthropic.messages.stream(**asked) as events:
        assert await events.get_final_text() == "Hello."
        assert events.response.headers["x-cache"] == "HIT"
    assert len(scene.gpt.requests) == 1


async def test_an_answer_that_may_be_shared_is_translated_wherever_it_comes_from(scene: Scene) -> None:
    """A fallback of Anthropic's own does not answer such a call in words that only one door reads."""
    asked: Any = {"model": "kept-gpt", "max_tokens": 9, "messages": [{"role": "user", "content": "Again?"}]}
    scene.gpt.plan(error_answer(500))
    scene.claude.plan(stream_answer(message_stream(text_block(0, ["Good", " day"]))))
    async with scene.anthropic.messages.stream(**asked) as events:
        message = await events.get_final_message()
    assert message.content[0].to_dict() == {"type": "text", "text": "Good day"}
    assert message.model == "claude"


async def test_what_passes_through_is_not_stored(scene: Scene) -> None:
    asked: Any = {"model": "kept-claude", "max_tokens": 9, "messages": QUESTION}
    for _ in range(2):
        scene.claude.plan(json_answer({**MESSAGE, "content": [TOOL]}))
        raw_answer = await scene.anthropic.messages.with_raw_response.create(**asked)
        assert raw_answer.headers["x-cache"] == "BYPASS"
        assert (await raw_answer.parse()).content[0].to_dict() == TOOL
    scene.claude.plan(stream_answer(message_stream(thinking_block(0, "Hm."), text_block(1, ["a"]))))
    async with scene.anthropic.messages.stream(**asked) as events:
        assert [block.type for block in (await events.get_final_message()).content] == ["thinking", "text"]
    assert len(scene.claude.requests) == 3


async def test_a_refusal_of_the_model_is_told(scene: Scene) -> None:
    chunks = [event(chat_chunk({"refusal": "I can't."})), event(chat_chunk({}, finish="stop")), b"data: [DONE]\n\n"]
    scene.gpt.plan(stream_answer(chunks))
    async with scene.anthropic.messages.stream(model="gpt", max_tokens=9, messages=QUESTION) as stream:
        assert (await stream.get_final_message()).stop_reason == "refusal"


async def test_silence_is_filled_with_pings(scene: Scene) -> None:
    go_on = asyncio.Event()
    events = message_stream(text_block(0, ["a"]))
    for model, upstream, first, rest in (
        ("claude", scene.claude, events[:1], events[2:]),
        ("gpt", scene.gpt, chat_events(["a"])[:1], chat_events(["a"])[1:]),
    ):
        go_on.clear()
        upstream.plan(then(stream_answer(first, end=False), wait_for(go_on), _rest(rest)))
        stream = await scene.anthropic.messages.create(model=model, max_tokens=9, messages=QUESTION, stream=True)
        data = b""
        async for piece in stream.response.aiter_bytes():
            data += piece
            if b"event: ping\ndata: {" in data:
                go_on.set()
        assert data.endswith(b'event: message_stop\ndata: {"type":"message_stop"}\n\n')


def _rest(parts: list[bytes]) -> Step:
    return raw(*(b"%x\r\n%b\r\n" % (len(part), part) for part in parts), b"0\r\n\r\n")


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("step", "expected", "status", "kind"),
    [
        (refusal(400, "invalid_request_error", "words"), anthropic.BadRequestError, 400, "invalid_request_error"),
        (refusal(404, "not_found_error", "words"), anthropic.NotFoundError, 404, "not_found_error"),
        (refusal(413, "request_too_large", "words"), anthropic.ContentTooLargeError, 413, "request_too_large"),
        (refusal(401, "authentication_error"), anthropic.InternalServerError, 502, "api_error"),
        (refusal(429, "rate_limit_error", retry_after="7"), anthropic.OverloadedError, 529, "overloaded_error"),
        (refusal(529, "overloaded_error"), anthropic.OverloadedError, 529, "overloaded_error"),
        (refusal(500, "api_error"), anthropic.InternalServerError, 502, "api_error"),
        (refusal(504, "timeout_error"), anthropic.GatewayTimeoutError, 504, "timeout_error"),
        (stream_answer([error_frame("overloaded_error")]), anthropic.InternalServerError, None, None),
        (stream_answer([]), anthropic.InternalServerError, 502, "api_error"),
    ],
)
async def test_each_failure_of_the_upstream_raises_the_sdks_own_class(
    scene: Scene, step: Step, expected: type[anthropic.APIStatusError], status: int | None, kind: str, stream: bool
) -> None:
    scene.claude.plan(step)
    with pytest.raises(expected) as caught:
        await scene.anthropic.messages.create(model="claude", max_tokens=9, messages=QUESTION, stream=stream)
    if status is not None:
        assert (caught.value.status_code, caught.value.type) == (status, kind)
        assert (caught.value.api_message == "words") is (status in (400, 404, 413))


@pytest.mark.parametrize("model", ["claude", "gpt"])
async def test_a_stream_that_breaks_ends_with_an_error_and_costs_nothing(scene: Scene, model: str) -> None:
    broken: dict[str, Step] = {
        "claude": stream_answer([*message_stream(text_block(0, ["a"]))[:4], error_frame("api_error")]),
        "gpt": stream_answer(chat_events(["a"])[:2]),
    }
    (scene.claude if model == "claude" else scene.gpt).plan(broken[model])
    answer = await scene.anthropic.messages.create(model=model, max_tokens=9, messages=QUESTION, stream=True)
    data = b"".join([piece async for piece in answer.response.aiter_bytes()])
    last = json.loads(data.split(b"\n\n")[-2].split(b"\ndata: ")[1])
    assert (last["type"], last["error"]["type"]) == ("error", "api_error")
    assert last["request_id"] == answer.response.headers["request-id"]
    assert b"message_stop" not in data
    assert b"secret" not in data
    receipt = await scene.receipt(last["request_id"])
    assert (receipt["status"], receipt["cost_usd"]) == (502, "0.00")


@pytest.mark.parametrize("model", ["claude", "gpt"])
async def test_a_hang_up_reaches_the_upstream_and_is_charged_for_what_came(scene: Scene, model: str) -> None:
    begun: dict[str, Step] = {
        "claude": stream_answer(message_stream(text_block(0, ["word " * 40]))[:4], end=False),
        "gpt": stream_answer(chat_events(["word"] * 3)[:4], end=False),
    }
    upstream = scene.claude if model == "claude" else scene.gpt
    upstream.plan(then(begun[model], hang()))
    stream = await scene.anthropic.messages.create(model=model, max_tokens=900, messages=QUESTION, stream=True)
    async for item in stream:
        if item.type == "content_block_delta":
            break
    await stream.close()
    await wait_until(lambda: upstream.open == 0, "the upstream sees the hang-up")
    receipt = await scene.receipt(stream.response.headers["request-id"])
    assert (receipt["status"], receipt["exact"]) == (499, False)
    assert 0 < receipt["output_tokens"] <= 55


async def test_a_test_key_never_reaches_an_upstream(scene: Scene) -> None:
    tester = scene.anthropic.with_options(api_key=scene.server.credentials["test_api_key"])
    message = await tester.messages.create(model="claude", max_tokens=99, messages=QUESTION)
    assert message.model == "claude"
    assert "sandbox" in message.content[0].to_json()
    assert not scene.claude.requests


async def test_what_the_other_dialect_can_not_say_is_refused_by_name(scene: Scene) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        await scene.openai.chat.completions.create(model="claude", messages=QUESTION, n=2)
    assert refused.value.param == "n"
    scene.gpt.plan(error_answer(400, "Unknown parameter."))
    with pytest.raises(anthropic.BadRequestError, match="Unknown parameter"):
        await scene.anthropic.messages.create(
            model="gpt", max_tokens=9, messages=QUESTION, extra_headers=CLASSIC, extra_body={"top_k": 5}
        )
    assert scene.gpt.requests[-1].json()["top_k"] == 5
    assert not scene.claude.requests
