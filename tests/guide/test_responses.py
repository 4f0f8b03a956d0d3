"""Responses: OpenAI's newer API over the models that you have."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel

from tests.guide.conftest import Tour


class City(BaseModel):
    name: str
    country: str


def test_ask_stream_and_get_a_type_back(tour: Tour) -> None:
    model = "smollm2-135m-instruct"
    response = tour.sdk.responses.create(model=model, input="What is the capital of France?", max_output_tokens=40)
    assert "Paris" in response.output_text
    with tour.sdk.responses.stream(model=model, input="Count to three.", max_output_tokens=12) as stream:
        assert "".join(event.delta for event in stream if event.type == "response.output_text.delta")
    parsed = tour.sdk.responses.parse(model=model, input="Where is the Eiffel Tower?", text_format=City)
    assert isinstance(parsed.output_parsed, City)


def test_a_conversation_is_sent_again_since_nothing_is_kept(tour: Tour) -> None:
    items: list[Any] = [{"role": "user", "content": "What is the weather in Oslo?"}]
    tool: Any = {"type": "function", "name": "weather", "parameters": {"type": "object"}, "strict": False}
    asked = tour.sdk.responses.create(model="sandbox", input=items, tools=[tool], tool_choice="required")
    assert asked.model_extra == {"store": False}
    (call,) = asked.output
    assert call.type == "function_call"
    items += [call.model_dump(exclude_none=True)]
    items += [{"type": "function_call_output", "call_id": call.call_id, "output": "Snow."}]
    assert tour.sdk.responses.create(model="sandbox", input=items, tools=[tool]).output_text
