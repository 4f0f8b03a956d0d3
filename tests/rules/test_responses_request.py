"""Requests in the Responses dialect: what chat each becomes, and what is refused by its own name."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelport.dialect.responses.to_chat import chat_body, chat_param
from modelport.errors import BadRequest
from modelport.requests import ChatRequest, ResponsesRequest

WEATHER = {"type": "function", "name": "weather", "parameters": {"type": "object"}, "strict": True}


def chat_of(**body: Any) -> dict[str, Any]:
    """The chat for a response with these members; it is one that our own door would take."""
    raw = msgspec.json.encode({"model": "m", "input": "Hi"} | body)
    request = msgspec.json.decode(raw, type=ResponsesRequest)
    chat = chat_body(request, msgspec.json.decode(raw, type=dict[str, msgspec.Raw]))
    msgspec.json.decode(chat, type=ChatRequest)
    decoded: dict[str, Any] = json.loads(chat)
    return decoded


def refused(**body: Any) -> BadRequest:
    with pytest.raises(BadRequest) as caught:
        chat_of(**body)
    return caught.value


class TestInput:
    def test_a_text_is_the_users_message_behind_the_instructions(self) -> None:
        assert chat_of()["messages"] == [{"role": "user", "content": "Hi"}]
        assert chat_of(instructions="Be brief.")["messages"] == [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "Hi"},
        ]

    def test_an_assistants_words_and_calls_become_one_message(self) -> None:
        items = [
            {"role": "user", "content": "Weather in Oslo and Rome?"},
            {"type": "reasoning", "id": "rs_1", "summary": []},
            {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "I look."}]},
            {"type": "function_call", "id": "fc_1", "call_id": "a", "name": "weather", "arguments": '{"city":"Oslo"}'},
            {"type": "function_call", "call_id": "b", "name": "weather", "arguments": '{"city":"Rome"}'},
            {"type": "function_call_output", "call_id": "a", "output": "snow"},
            {"type": "function_call_output", "call_id": "b", "output": [{"type": "input_text", "text": "sun"}]},
        ]
        first, turn, *results = chat_of(input=items)["messages"]
        assert first == {"role": "user", "content": "Weather in Oslo and Rome?"}
        assert (turn["role"], turn["content"]) == ("assistant", "I look.")
        assert [call["id"] for call in turn["tool_calls"]] == ["a", "b"]
        assert turn["tool_calls"][0]["function"] == {"name": "weather", "arguments": '{"city":"Oslo"}'}
        assert results == [
            {"role": "tool", "tool_call_id": "a", "content": "snow"},
            {"role": "tool", "tool_call_id": "b", "content": "sun"},
        ]

    def test_calls_without_words_have_a_message_of_their_own(self) -> None:
        call = {"type": "function_call", "call_id": "a", "name": "f", "arguments": "{}"}
        output = {"type": "function_call_output", "call_id": "a", "output": "1"}
        roles = [message["role"] for message in chat_of(input=[call, output, call])["messages"]]
        assert roles == ["assistant", "tool", "assistant"]

    def test_pictures_files_and_sound_are_a_chats_own_parts(self) -> None:
        parts = [
            {"type": "input_text", "text": "What is it?"},
            {"type": "input_image", "image_url": "data:image/png;base64,AA", "detail": "auto"},
            {"type": "input_image", "image_url": "https://x/y.png", "detail": "low"},
            {"type": "input_file", "file_data": "data:application/pdf;base64,AA", "filename": "a.pdf"},
            {"type": "input_audio", "input_audio": {"data": "AA", "format": "wav"}},
        ]
        (message,) = chat_of(input=[{"role": "user", "content": parts}])["messages"]
        assert message["content"] == [
            {"type": "text", "text": "What is it?"},
            {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA"}},
            {"type": "image_url", "image_url": {"url": "https://x/y.png", "detail": "low"}},
            {"type": "file", "file": {"file_data": "data:application/pdf;base64,AA", "filename": "a.pdf"}},
            {"type": "input_audio", "input_audio": {"data": "AA", "format": "wav"}},
        ]

    @pytest.mark.parametrize(
        ("item", "param"),
        [
            ({"type": "item_reference", "id": "x"}, "input[0].type"),
            ({"type": "web_search_call"}, "input[0].type"),
            ({"type": 7}, "input[0].type"),
            ({"role": "tool", "content": "x"}, "input[0].role"),
            ({"role": "user", "content": 7}, "input[0].content"),
            ({"role": "user", "content": ["x"]}, "input[0].content"),
            ({"role": "user", "content": [{"type": "input_text"}]}, "input[0].content[0].text"),
            ({"role": "user", "content": [{"type": "input_image", "file_id": "f"}]}, "input[0].content[0].image_url"),
            ({"role": "user", "content": [{"type": "input_video"}]}, "input[0].content[0].type"),
            ({"type": "function_call", "call_id": "a", "name": "f"}, "input[0].arguments"),
            ({"type": "function_call_output", "output": "x"}, "input[0].call_id"),
            ({"type": "function_call_output", "call_id": "a"}, "input[0].output"),
            ({"role": "system", "content": "x"}, "input"),
        ],
    )
    def test_what_no_chat_can_hold_is_refused_by_its_place(self, item: Any, param: str) -> None:
        assert refused(input=[item]).param == param


class TestMembers:
    def test_known_members_get_the_names_and_forms_of_a_chat(self) -> None:
        schema = {"type": "json_schema", "name": "age", "schema": {"type": "object"}, "strict": True}
        chat = chat_of(
            max_output_tokens=7,
            tools=[WEATHER],
            tool_choice={"type": "function", "name": "weather"},
            parallel_tool_calls=False,
            text={"format": schema, "verbosity": "low"},
            reasoning={"effort": "low", "summary": "auto"},
            include=["message.output_text.logprobs"],
            top_logprobs=3,
            temperature=0.5,
            top_p=0.9,
            metadata={"team": "a"},
            user="u",
            stream=True,
        )
        function = {"name": "weather", "parameters": {"type": "object"}, "strict": True}
        assert chat.pop("messages")
        assert chat == {
            "model": "m",
            "max_completion_tokens": 7,
            "tools": [{"type": "function", "function": function}],
            "tool_choice": {"type": "function", "function": {"name": "weather"}},
            "parallel_tool_calls": False,
            "response_format": {
                "type": "json_schema",
                "json_schema": {"name": "age", "schema": {"type": "object"}, "strict": True},
            },
            "verbosity": "low",
            "reasoning_effort": "low",
            "logprobs": True,
            "top_logprobs": 3,
            "temperature": 0.5,
            "top_p": 0.9,
            "metadata": {"team": "a"},
            "user": "u",
            "stream": True,
        }

    def test_members_that_nobody_knows_are_kept_byte_for_byte(self) -> None:
        raw = b'{"model":"m","input":"x","odd":{"a": [1,  2.50]},"seed":7,"service_tier":"flex"}'
        request = msgspec.json.decode(raw, type=ResponsesRequest)
        body = chat_body(request, msgspec.json.decode(raw, type=dict[str, msgspec.Raw]))
        assert b'"odd":{"a": [1,  2.50]}' in body
        assert json.loads(body)["seed"] == 7
        assert json.loads(body)["service_tier"] == "flex"

    def test_hints_that_change_nothing_are_taken(self) -> None:
        plain = chat_of()
        assert plain == chat_of(store=True, truncation="auto", include=["reasoning.encrypted_content"], text={})
        assert plain == chat_of(previous_response_id=None, background=False, tools=[], reasoning=None)
        assert plain == chat_of(text={"format": {"type": "text"}}, stream_options={"include_obfuscation": True})

    def test_a_choice_among_some_of_the_tools_is_passed_on(self) -> None:
        choice = {"type": "allowed_tools", "mode": "required", "tools": [{"type": "function", "name": "weather"}]}
        allowed = {"mode": "required", "tools": [{"type": "function", "function": {"name": "weather"}}]}
        chat = chat_of(tools=[WEATHER], tool_choice=choice)
        assert chat["tool_choice"] == {"type": "allowed_tools", "allowed_tools": allowed}

    @pytest.mark.parametrize(
        ("body", "param"),
        [
            ({"previous_response_id": "resp_1"}, "previous_response_id"),
            ({"conversation": "conv_1"}, "conversation"),
            ({"background": True}, "background"),
            ({"prompt": {"id": "p"}}, "prompt"),
            ({"tools": [WEATHER, {"type": "web_search"}]}, "tools[1].type"),
            ({"tools": [{"type": "function"}]}, "tools[0].name"),
            ({"tool_choice": "any"}, "tool_choice"),
            ({"tool_choice": {"type": "mcp"}}, "tool_choice"),
            ({"tool_choice": {"type": "allowed_tools", "tools": ["x"]}}, "tool_choice"),
            ({"text": {"format": {"type": "xml"}}}, "text.format"),
            ({"text": {"format": "json"}}, "text.format"),
            ({"reasoning": {"mode": "pro"}}, "reasoning.mode"),
            ({"messages": []}, "messages"),
            ({"max_tokens": 3}, "max_tokens"),
            ({"n": 2}, "n"),
        ],
    )
    def test_what_is_not_done_here_is_refused_by_its_name(self, body: Any, param: str) -> None:
        assert refused(**body).param == param

    def test_a_refused_member_of_the_chat_is_told_as_the_responses_own(self) -> None:
        assert chat_param("messages[3].content") == "input"
        assert chat_param("response_format.json_schema.schema") == "text.format"
        assert chat_param("max_completion_tokens") == "max_output_tokens"
        assert chat_param("tools[0].function") == "tools[0].function"
        assert chat_param(None) is None


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 5) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
_ITEM = st.fixed_dictionaries(
    {},
    optional={
        "type": st.sampled_from(["message", "function_call", "function_call_output", "reasoning"]) | _JSON,
        "role": st.sampled_from(["user", "assistant", "system"]) | _JSON,
        "content": st.text(max_size=5) | _JSON,
        "call_id": st.text(max_size=5) | _JSON,
        "name": st.text(max_size=5) | _JSON,
        "arguments": st.text(max_size=5) | _JSON,
        "output": st.text(max_size=5) | _JSON,
    },
)


@given(
    items=st.lists(_ITEM, min_size=1, max_size=5),
    members=st.fixed_dictionaries(
        {},
        optional={
            "tools": st.lists(st.dictionaries(st.sampled_from(["type", "name", "x"]), _JSON), max_size=3),
            "tool_choice": st.text(max_size=5) | st.dictionaries(st.sampled_from(["type", "name", "tools"]), _JSON),
            "text": st.dictionaries(st.sampled_from(["format", "verbosity"]), _JSON),
            "reasoning": st.dictionaries(st.sampled_from(["effort", "mode"]), _JSON),
        },
    ),
)
def test_any_request_becomes_a_chat_or_a_clear_refusal(items: Any, members: Any) -> None:
    """Never anything but BadRequest, and never a chat that our own door would not take."""
    told: list[str | None] = ["message", "param"]
    try:
        chat_of(input=items, **members)
    except BadRequest as error:
        told = [error.message, error.param]
    assert all(told)
