"""Anthropic's format: the official SDK over the same models, keys, limits and books."""

from __future__ import annotations

from collections.abc import Iterator
from decimal import Decimal

import anthropic
import pytest
from anthropic import Anthropic, AsyncAnthropic
from anthropic.types import MessageParam, ToolParam

from tests.guide.conftest import Tour
from tests.waiting import wait_until

QUESTION: list[MessageParam] = [{"role": "user", "content": "What is the capital of France?"}]


@pytest.fixture(scope="module")
def claude(tour: Tour) -> Iterator[Anthropic]:
    """The SDK wants the address without `/v1`."""
    with Anthropic(base_url=tour.server.base_url, api_key=tour.key, max_retries=0) as client:
        yield client


def test_ask_the_local_model(claude: Anthropic) -> None:
    message = claude.messages.create(model="smollm2-135m-instruct", max_tokens=40, messages=QUESTION)
    assert message.content[0].type == "text"
    assert "Paris" in message.content[0].text
    assert message.usage.output_tokens <= 40


def test_read_an_answer_as_it_comes(claude: Anthropic) -> None:
    with claude.messages.stream(model="smollm2-135m-instruct", max_tokens=20, messages=QUESTION) as stream:
        pieces = list(stream.text_stream)
        message = stream.get_final_message()
    assert len(pieces) > 3
    assert message.stop_reason in ("end_turn", "max_tokens")


async def test_stream_with_asyncio(tour: Tour) -> None:
    async with (
        AsyncAnthropic(base_url=tour.server.base_url, api_key=tour.key) as client,
        client.messages.stream(
            model="sandbox", max_tokens=50, messages=[{"role": "user", "content": "[[echo]] good morning"}]
        ) as stream,
    ):
        assert await stream.get_final_text() == "good morning"


def test_let_the_model_use_a_tool(claude: Anthropic) -> None:
    weather: ToolParam = {
        "name": "weather",
        "description": "The weather in a city",
        "input_schema": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    }
    question: MessageParam = {"role": "user", "content": 'Rain in Oslo? [[tool:weather {"city": "Oslo"}]]'}
    first = claude.messages.create(model="sandbox", max_tokens=99, tools=[weather], messages=[question])
    assert first.stop_reason == "tool_use"
    (call,) = [block for block in first.content if block.type == "tool_use"]
    assert call.input == {"city": "Oslo"}
    result: MessageParam = {
        "role": "user",
        "content": [{"type": "tool_result", "tool_use_id": call.id, "content": "It rains."}],
    }
    conversation = [question, first.to_param(), result]
    second = claude.messages.create(model="sandbox", max_tokens=99, tools=[weather], messages=conversation)
    assert second.stop_reason == "end_turn"


def test_count_before_you_ask(claude: Anthropic) -> None:
    counted = claude.messages.count_tokens(model="smollm2-135m-instruct", messages=QUESTION)
    used = claude.messages.create(model="smollm2-135m-instruct", max_tokens=1, messages=QUESTION).usage
    assert counted.input_tokens == used.input_tokens + (used.cache_read_input_tokens or 0)


async def test_find_the_call_in_the_books(claude: Anthropic, tour: Tour) -> None:
    """`request-id` names it; what the SDK saw is what was charged."""
    raw = claude.messages.with_raw_response.create(
        model="sandbox", max_tokens=99, messages=QUESTION, metadata={"user_id": "ann"}
    )
    usage = raw.parse().usage
    path = f"/v1/requests/{raw.headers['request-id']}"
    await wait_until(lambda: tour.http.get(path).status_code == 200, "the call is in the books")
    receipt = tour.http.get(path).json()
    assert receipt["endpoint"] == "/v1/messages"
    assert (receipt["input_tokens"], receipt["output_tokens"]) == (usage.input_tokens, usage.output_tokens)
    assert receipt["metadata"] == {"user_id": "ann"}
    assert Decimal(receipt["cost_usd"]) == Decimal(raw.headers["x-cost-usd"])


def test_failures_are_the_sdks_own(claude: Anthropic) -> None:
    with pytest.raises(anthropic.NotFoundError):
        claude.messages.create(model="nope", max_tokens=9, messages=QUESTION)
    with pytest.raises(anthropic.OverloadedError) as caught:
        claude.messages.create(
            model="sandbox", max_tokens=9, messages=[{"role": "user", "content": "[[error:overloaded]]"}]
        )
    assert caught.value.type == "overloaded_error"
    assert caught.value.request_id
