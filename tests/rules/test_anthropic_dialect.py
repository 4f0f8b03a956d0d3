"""Anthropic's dialect and OpenAI's say the same thing in both directions, and no answer is out of order."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from anthropic.types import Message, RawMessageStreamEvent
from hypothesis import example, given
from hypothesis import strategies as st
from pydantic import TypeAdapter

from modelport.calls import Call, Caller, Operation, Usage
from modelport.dialect.anthropic import vocabulary
from modelport.dialect.anthropic.folding import fold
from modelport.dialect.anthropic.shapes import MessagesRequest, check_version, read_version
from modelport.dialect.anthropic.to_chat import to_chat
from modelport.dialect.anthropic.to_events import EventWriter
from modelport.dialect.anthropic.to_messages import to_messages
from modelport.dialect.anthropic.wire import Event, write
from modelport.errors import BadRequest
from modelport.requests import ChatRequest
from tests.upstream import chat_chunk, event

USED = Usage(input_tokens=9, output_tokens=4, cached_tokens=3)
# Before anything is known.
NOTHING = Usage()
EVENT: TypeAdapter[RawMessageStreamEvent] = TypeAdapter(RawMessageStreamEvent)
CALL = Call(
    id="req_" + "1" * 32,
    caller=Caller("org_a", "proj_a", "key_a", "live", frozenset({"inference"}), "free"),
    endpoint="/v1/messages",
    operation=Operation.CHAT,
    model="m",
    request=None,
    fields={},
    started_us=0,
    started_s=0.0,
    deadline_s=600.0,
)
PIXEL = "iVBORw0KGgo="


def chat_of(**body: Any) -> dict[str, Any]:
    """The chat request that a Messages request becomes, as plain values."""
    sent = msgspec.json.encode({"model": "m", "max_tokens": 5, "messages": [], **body})
    fields = msgspec.json.decode(sent, type=dict[str, msgspec.Raw])
    request = msgspec.json.decode(sent, type=MessagesRequest)
    translated = msgspec.json.encode(to_chat(request, fields))
    msgspec.json.decode(translated, type=ChatRequest)
    return json.loads(translated)  # type: ignore[no-any-return]


def said(*turns: Any) -> list[dict[str, Any]]:
    """The messages that a conversation becomes; turns are the user's and the assistant's in turn."""
    roles = ("user", "assistant")
    messages = [{"role": roles[index % 2], "content": content} for index, content in enumerate(turns)]
    return chat_of(messages=messages)["messages"]  # type: ignore[no-any-return]


def messages_of(**body: Any) -> dict[str, Any]:
    """The Messages request that a chat request becomes, as plain values."""
    sent = msgspec.json.encode({"model": "m", "messages": [{"role": "user", "content": "x"}], **body})
    fields = msgspec.json.decode(sent, type=dict[str, msgspec.Raw])
    request = msgspec.json.decode(sent, type=ChatRequest)
    return json.loads(msgspec.json.encode(to_messages(request, fields, model="claude", max_tokens=5)))  # type: ignore[no-any-return]


class TestRequestToChat:
    def test_words_stay_words(self) -> None:
        texts = [{"type": "text", "text": "a", "cache_control": {"type": "ephemeral"}}, {"type": "text", "text": "b"}]
        assert said("a", "b", texts) == [
            {"role": "user", "content": "a"},
            {"role": "assistant", "content": "b"},
            {"role": "user", "content": "a\nb"},
        ]

    @pytest.mark.parametrize("system", ["a\n\nb", [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]])
    def test_the_system_prompt_comes_first(self, system: Any) -> None:
        chat = chat_of(
            messages=[{"role": "user", "content": "x"}, {"role": "system", "content": "late"}], system=system
        )
        assert chat["messages"] == [
            {"role": "system", "content": "a\n\nb"},
            {"role": "user", "content": "x"},
            {"role": "system", "content": "late"},
        ]

    @pytest.mark.parametrize(
        ("source", "url"),
        [
            ({"type": "base64", "media_type": "image/png", "data": PIXEL}, f"data:image/png;base64,{PIXEL}"),
            ({"type": "url", "url": "https://x/y.png"}, "https://x/y.png"),
        ],
    )
    def test_pictures_are_addresses(self, source: Any, url: str) -> None:
        (message,) = said([{"type": "image", "source": source}, {"type": "text", "text": "what?"}])
        assert message["content"] == [
            {"type": "image_url", "image_url": {"url": url}},
            {"type": "text", "text": "what?"},
        ]

    @pytest.mark.parametrize(
        ("source", "part"),
        [
            ({"type": "text", "media_type": "text/plain", "data": "d"}, "t\nd"),
            ({"type": "content", "content": [{"type": "text", "text": "d"}]}, "d"),
            ({"type": "content", "content": "d"}, "d"),
            (
                {"type": "base64", "media_type": "application/pdf", "data": "UERG"},
                [{"type": "file", "file": {"filename": "t", "file_data": "data:application/pdf;base64,UERG"}}],
            ),
        ],
    )
    def test_documents_are_texts_or_files(self, source: Any, part: Any) -> None:
        (message,) = said([{"type": "document", "title": "t", "source": source}])
        assert message["content"] == part

    def test_results_of_tools_are_messages_before_what_else_was_said(self) -> None:
        call = {"type": "tool_use", "id": "toolu_1", "name": "f", "input": {"a": 1}}
        picture = {"type": "image", "source": {"type": "url", "url": "https://x"}}
        results = [
            {"type": "text", "text": "and?"},
            {"type": "tool_result", "tool_use_id": "toolu_1", "content": [{"type": "text", "text": "r"}, picture]},
            {"type": "tool_result", "tool_use_id": "toolu_2", "content": "bad", "is_error": True},
            {"type": "tool_result", "tool_use_id": "toolu_3"},
        ]
        messages = said("x", [{"type": "text", "text": "I look."}, call], results)
        assert messages[1]["content"] == "I look."
        (made,) = messages[1]["tool_calls"]
        assert (made["id"], made["function"]["name"]) == ("toolu_1", "f")
        assert json.loads(made["function"]["arguments"]) == {"a": 1}
        assert messages[2:5] == [
            {"role": "tool", "tool_call_id": "toolu_1", "content": "r"},
            {"role": "tool", "tool_call_id": "toolu_2", "content": "Error: bad"},
            {"role": "tool", "tool_call_id": "toolu_3", "content": ""},
        ]
        assert [part["type"] for part in messages[5]["content"]] == ["text", "image_url"]

    def test_thoughts_and_a_servers_own_blocks_are_left_out(self) -> None:
        thoughts = [
            {"type": "thinking", "thinking": "Hm.", "signature": "s"},
            {"type": "redacted_thinking", "data": "x"},
            {"type": "server_tool_use", "id": "srvtoolu_1", "name": "web_search", "input": {}},
            {"type": "web_search_tool_result", "tool_use_id": "srvtoolu_1", "content": []},
        ]
        assert said("x", [*thoughts, {"type": "text", "text": "y"}])[1] == {"role": "assistant", "content": "y"}
        assert said("x", thoughts)[1] == {"role": "assistant", "content": ""}

    def test_what_has_no_counterpart_is_left_for_the_backend_to_refuse(self) -> None:
        odd = {"type": "document", "source": {"type": "url", "url": "https://x"}}
        assert said([odd])[0]["content"] == [odd]
        tool = {"type": "web_search_20260318", "name": "web_search"}
        assert chat_of(messages=[{"role": "user", "content": "x"}], tools=[tool])["tools"] == [tool]

    def test_tools_are_functions(self) -> None:
        tool = {"name": "f", "description": "d", "input_schema": {"type": "object"}, "strict": True, "type": "custom"}
        chat = chat_of(messages=[{"role": "user", "content": "x"}], tools=[tool])
        function = {"name": "f", "parameters": {"type": "object"}, "description": "d", "strict": True}
        assert chat["tools"] == [{"type": "function", "function": function}]
        assert "tool_choice" not in chat

    @pytest.mark.parametrize(
        ("choice", "expected"),
        [
            ({"type": "auto"}, "auto"),
            ({"type": "any"}, "required"),
            ({"type": "none"}, "none"),
            ({"type": "tool", "name": "f"}, {"type": "function", "function": {"name": "f"}}),
        ],
    )
    def test_choices_of_tools(self, choice: Any, expected: Any) -> None:
        body = {"messages": [{"role": "user", "content": "x"}], "tools": [{"name": "f", "input_schema": {}}]}
        assert chat_of(**body, tool_choice=choice)["tool_choice"] == expected
        chat = chat_of(**body, tool_choice={**choice, "disable_parallel_tool_use": True})
        assert chat["parallel_tool_calls"] is False

    def test_members_of_either_dialect_find_their_place(self) -> None:
        chat = chat_of(
            messages=[{"role": "user", "content": "x"}],
            stop_sequences=["S"],
            metadata={"user_id": "u"},
            thinking={"type": "adaptive"},
            output_config={"effort": "low", "format": {"type": "json_schema", "schema": {"type": "object"}}},
            stream=True,
            temperature=0.5,
            top_k=7,
            odd={"a": 1},
            n=3,
        )
        assert {
            name: chat[name] for name in ("stop", "user", "stream", "max_tokens", "temperature", "top_k", "odd")
        } == {
            "stop": ["S"],
            "user": "u",
            "stream": True,
            "max_tokens": 5,
            "temperature": 0.5,
            "top_k": 7,
            "odd": {"a": 1},
        }
        assert chat["response_format"]["json_schema"]["schema"] == {"type": "object"}
        assert not {"thinking", "metadata", "n", "output_config"} & set(chat)

    @given(
        st.recursive(
            st.none() | st.booleans() | st.integers(-5, 5) | st.text(max_size=5),
            lambda inner: (
                st.lists(inner, max_size=3)
                | st.dictionaries(
                    st.sampled_from(["type", "text", "source", "content", "input", "name", "id", "data", "url"]), inner
                )
            ),
            max_leaves=12,
        ),
        st.sampled_from(
            ["text", "image", "document", "tool_use", "tool_result", "search_result", "thinking", "odd", None]
        ),
    )
    @example(True, "tool_result")
    def test_no_block_however_odd_breaks_the_translation(self, value: Any, kind: str | None) -> None:
        block = {**(value if isinstance(value, dict) else {"content": value, "source": value}), "type": kind}
        for role in ("user", "assistant"):
            chat_of(messages=[{"role": role, "content": [block]}])


class TestVersions:
    def test_only_known_versions_are_read(self) -> None:
        assert read_version(None) == read_version("2023-06-01") == "2023-06-01"
        with pytest.raises(BadRequest, match="2022"):
            read_version("2022-01-01")

    @pytest.mark.parametrize(
        ("body", "param"),
        [
            ({"temperature": 1.0}, "temperature"),
            ({"top_p": 1.0}, "top_p"),
            ({"top_k": 1}, "top_k"),
            ({"messages": [{"role": "assistant", "content": [{"type": "document"}]}]}, "messages.0.content.0"),
            (
                {"messages": [{"role": "user", "content": [{"type": "text", "text": "x", "citations": [{}]}]}]},
                "messages.0.content.0",
            ),
        ],
    )
    def test_the_strict_version_refuses_what_the_classic_one_takes(self, body: dict[str, Any], param: str) -> None:
        base = {"model": "m", "max_tokens": 5, "messages": [{"role": "user", "content": "x"}]}
        request = msgspec.convert(base | body, MessagesRequest)
        check_version(request, "2023-06-01")
        with pytest.raises(BadRequest) as refused:
            check_version(request, "2026-10-21")
        assert refused.value.param == param


class TestRequestToMessages:
    def test_system_messages_are_gathered_and_neighbours_joined(self) -> None:
        body = messages_of(
            messages=[
                {"role": "system", "content": "a"},
                {"role": "developer", "content": [{"type": "text", "text": "b"}]},
                {"role": "user", "content": "x"},
                {"role": "user", "content": "y"},
                {"role": "assistant", "content": "z"},
            ]
        )
        assert body["system"] == "a\n\nb"
        texts = [(turn["role"], [block["text"] for block in turn["content"]]) for turn in body["messages"]]
        assert texts == [("user", ["x", "y"]), ("assistant", ["z"])]

    def test_calls_and_results_of_tools(self) -> None:
        calls = [
            {"id": f"call_{n}", "type": "function", "function": {"name": "f", "arguments": f'{{"n":{n}}}'}}
            for n in (1, 2)
        ]
        body = messages_of(
            messages=[
                {"role": "user", "content": "x"},
                {"role": "assistant", "content": None, "tool_calls": calls},
                {"role": "tool", "tool_call_id": "call_1", "content": "one"},
                {"role": "tool", "tool_call_id": "call_2", "content": ""},
                {"role": "user", "content": "go on"},
            ]
        )
        assert body["messages"][1]["content"][0] == {"type": "tool_use", "id": "call_1", "name": "f", "input": {"n": 1}}
        last = body["messages"][2]["content"]
        assert [block["type"] for block in last] == ["tool_result", "tool_result", "text"]
        assert last[0]["content"] == [{"type": "text", "text": "one"}]
        assert last[1]["content"] == []

    def test_pictures_and_files(self) -> None:
        parts = [
            {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{PIXEL}", "detail": "low"}},
            {"type": "image_url", "image_url": {"url": "https://x"}, "cache_control": {"type": "ephemeral"}},
            {"type": "file", "file": {"filename": "t", "file_data": "data:application/pdf;base64,UERG"}},
        ]
        body = messages_of(messages=[{"role": "user", "content": parts}])
        assert body["messages"][0]["content"] == [
            {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": PIXEL}},
            {"type": "image", "source": {"type": "url", "url": "https://x"}, "cache_control": {"type": "ephemeral"}},
            {
                "type": "document",
                "source": {"type": "base64", "media_type": "application/pdf", "data": "UERG"},
                "title": "t",
            },
        ]

    @pytest.mark.parametrize(
        ("asked", "choice"),
        [
            ({"tool_choice": "auto"}, {"type": "auto"}),
            ({"tool_choice": "required"}, {"type": "any"}),
            ({"tool_choice": "none"}, {"type": "none"}),
            ({"tool_choice": {"type": "function", "function": {"name": "f"}}}, {"type": "tool", "name": "f"}),
            ({"parallel_tool_calls": False}, {"type": "auto", "disable_parallel_tool_use": True}),
            ({"tool_choice": "none", "parallel_tool_calls": False}, {"type": "none"}),
            ({}, None),
        ],
    )
    def test_tools_and_choices(self, asked: Any, choice: Any) -> None:
        function = {"name": "f", "description": "d", "parameters": {"type": "object", "properties": {}}}
        body = messages_of(tools=[{"type": "function", "function": function}], **asked)
        schema = {"type": "object", "properties": {}}
        assert body["tools"] == [{"name": "f", "input_schema": schema, "description": "d"}]
        assert body.get("tool_choice") == choice

    def test_allowed_tools_are_the_tools(self) -> None:
        tools = [{"type": "function", "function": {"name": name}} for name in "fg"]
        allowed = {"mode": "required", "tools": [{"type": "function", "function": {"name": "g"}}]}
        body = messages_of(tools=tools, tool_choice={"type": "allowed_tools", "allowed_tools": allowed})
        assert [tool["name"] for tool in body["tools"]] == ["g"]
        assert body["tool_choice"] == {"type": "any"}

    def test_members_of_either_dialect_find_their_place(self) -> None:
        body = messages_of(
            temperature=1.5,
            top_p=0.9,
            stop="S",
            user="u",
            seed=7,
            reasoning_effort="minimal",
            response_format={"type": "json_schema", "json_schema": {"name": "n", "schema": {"type": "object"}}},
            thinking={"type": "adaptive"},
            top_k=3,
        )
        assert (body["temperature"], body["top_p"], body["stop_sequences"]) == (1.0, 0.9, ["S"])
        assert body["metadata"] == {"user_id": "u"}
        assert body["output_config"] == {
            "format": {"type": "json_schema", "schema": {"type": "object"}},
            "effort": "low",
        }
        assert (body["thinking"], body["top_k"]) == ({"type": "adaptive"}, 3)
        assert not {"seed", "user", "response_format", "reasoning_effort"} & set(body)

    def test_any_json_object_is_asked_for_in_words(self) -> None:
        assert "JSON" in messages_of(response_format={"type": "json_object"})["system"]

    @pytest.mark.parametrize(
        ("asked", "param"),
        [
            ({"n": 2}, "n"),
            ({"logprobs": True}, "logprobs"),
            ({"logit_bias": {"5": 1}}, "logit_bias"),
            ({"frequency_penalty": 0.5}, "frequency_penalty"),
            ({"audio": {"voice": "x"}}, "audio"),
            ({"tool_choice": "odd", "tools": [{"function": {"name": "f"}}]}, "tool_choice"),
            ({"tools": [{"type": "function"}]}, "tools[0].function.name"),
            ({"tools": [{"function": {"name": "f", "parameters": 5}}]}, "tools[0].function.parameters"),
            (
                {"tools": [{"function": {"name": "f"}}], "tool_choice": {"type": "allowed_tools", "allowed_tools": 5}},
                "tool_choice",
            ),
            ({"response_format": {"type": "json_schema"}}, "response_format.json_schema"),
            ({"messages": [{"role": "user", "content": [{"type": "input_audio"}]}]}, "messages[0].content[0]"),
            ({"messages": [{"role": "function", "content": "x"}]}, "messages[0].role"),
            (
                {"messages": [{"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "["}}]}]},
                "messages[0].tool_calls",
            ),
        ],
    )
    def test_what_can_not_be_said_is_refused_by_name(self, asked: dict[str, Any], param: str) -> None:
        with pytest.raises(BadRequest) as refused:
            messages_of(**asked)
        assert refused.value.param == param

    @pytest.mark.parametrize("asked", [{"frequency_penalty": 0}, {"n": 1}, {"logprobs": False}, {"audio": None}])
    def test_what_asks_for_nothing_is_no_reason_to_refuse(self, asked: dict[str, Any]) -> None:
        assert set(messages_of(**asked)) == {"model", "max_tokens", "messages", "stream"}


class TestUsage:
    @given(st.integers(0, 99), st.integers(0, 99), st.integers(0, 99))
    def test_what_is_written_is_read_back(self, fresh: int, cached: int, output: int) -> None:
        usage = Usage(input_tokens=fresh + cached, output_tokens=output, cached_tokens=cached)
        assert vocabulary.usage_from(vocabulary.usage_body(usage)) == usage

    def test_a_stream_tells_the_input_first_and_the_output_last(self) -> None:
        start = vocabulary.usage_from(
            {"input_tokens": 5, "cache_read_input_tokens": 3, "cache_creation_input_tokens": 2, "output_tokens": 1}
        )
        assert start == Usage(10, 1, cached_tokens=3)
        assert vocabulary.usage_from({"output_tokens": 7}, start) == Usage(10, 7, cached_tokens=3)
        whole = {"input_tokens": 6, "output_tokens": 8, "output_tokens_details": {"thinking_tokens": 2}}
        assert vocabulary.usage_from(whole, start) == Usage(6, 8, reasoning_tokens=2)

    @pytest.mark.parametrize("body", [None, [], {}, {"input_tokens": "5"}, {"input_tokens": -1}, {"output_tokens": 3}])
    def test_what_makes_no_sense_is_not_taken_for_usage(self, body: Any) -> None:
        assert vocabulary.usage_from(body) is None


def check_order(events: list[Event]) -> list[dict[str, Any]]:
    """Assert the order that Anthropic promises, as its SDK sees it; the blocks with what they were given."""
    for item in events:
        EVENT.validate_python(item)
    assert events[0]["type"] == "message_start"
    assert events[-1]["type"] == "message_delta"
    blocks: list[dict[str, Any]] = []
    opened = False
    for item in events[1:-1]:
        if item["type"] == "content_block_start":
            assert not opened
            assert item["index"] == len(blocks)
            blocks.append({**item["content_block"], "said": ""})
            opened = True
        else:
            assert opened
            assert item["index"] == len(blocks) - 1
            if item["type"] == "content_block_stop":
                opened = False
            else:
                blocks[-1]["said"] += item["delta"].get("text", "") + item["delta"].get("partial_json", "")
    assert not opened
    return blocks


def answer_of(*chunks: Any) -> list[Event]:
    writer = EventWriter(CALL)
    events = [item for chunk in chunks for item in writer.feed(event(chunk), NOTHING)]
    return events + writer.end(USED)


def tool_chunk(index: int, arguments: str, *, name: str | None = None) -> dict[str, Any]:
    start = {"id": f"call_{index}", "type": "function"} if name else {}
    function = {"arguments": arguments} | ({"name": name} if name else {})
    return chat_chunk({"tool_calls": [{"index": index, **start, "function": function}]})


INPUTS = st.dictionaries(st.text(max_size=4), st.text(max_size=4) | st.integers(), max_size=3)


class TestAnswerToEvents:
    def test_words_are_one_block(self) -> None:
        events = answer_of(
            chat_chunk({"role": "assistant", "content": ""}), chat_chunk({"content": "Hel"}),
            chat_chunk({"content": "lo"}), chat_chunk({}, finish="stop"),
        )  # fmt: skip
        (block,) = check_order(events)
        assert (block["type"], block["said"]) == ("text", "Hello")
        assert events[-1]["delta"] == {"stop_reason": "end_turn", "stop_sequence": None}
        assert events[-1]["usage"] == {
            "input_tokens": 6,
            "cache_creation_input_tokens": 0,
            "cache_read_input_tokens": 3,
            "output_tokens": 4,
        }

    def test_the_first_piece_of_words_is_sent_at_once(self) -> None:
        writer = EventWriter(CALL)
        events = writer.feed(event(chat_chunk({"content": "Hel"})), USED)
        assert [item["type"] for item in events] == ["message_start", "content_block_start", "content_block_delta"]
        assert events[0]["message"]["usage"]["input_tokens"] == 6

    def test_an_empty_answer_is_a_message_without_blocks(self) -> None:
        events = answer_of(chat_chunk({"role": "assistant", "content": ""}), chat_chunk({}, finish="stop"))
        assert check_order(events) == []

    @pytest.mark.parametrize(
        ("finish", "reason"),
        [("stop", "end_turn"), ("length", "max_tokens"), ("tool_calls", "tool_use"), ("content_filter", "refusal")],
    )
    def test_reasons_to_stop(self, finish: str, reason: str) -> None:
        assert answer_of(chat_chunk({"content": "x"}, finish=finish))[-1]["delta"]["stop_reason"] == reason

    def test_a_stop_sequence_is_named_where_the_engine_names_it(self) -> None:
        chunk = chat_chunk({}, finish="stop")
        chunk["choices"][0]["stop_reason"] = "END"
        assert answer_of(chunk)[-1]["delta"] == {"stop_reason": "stop_sequence", "stop_sequence": "END"}
        # vLLM names a token by its number.
        chunk["choices"][0]["stop_reason"] = 151643
        assert answer_of(chunk)[-1]["delta"] == {"stop_reason": "end_turn", "stop_sequence": None}

    def test_a_refusal_is_told_in_words_and_as_the_reason(self) -> None:
        events = answer_of(chat_chunk({"refusal": "No."}), chat_chunk({}, finish="stop"))
        assert check_order(events)[0]["said"] == "No."
        assert events[-1]["delta"]["stop_reason"] == "refusal"

    def test_other_choices_and_thoughts_are_left_out(self) -> None:
        second = chat_chunk({"content": "other"})
        second["choices"][0]["index"] = 1
        (block,) = check_order(
            answer_of(chat_chunk({"reasoning_content": "Hm."}), second, chat_chunk({"content": "a"}))
        )
        assert block["said"] == "a"

    def test_a_call_that_its_server_calls_an_ordinary_end_is_a_call(self) -> None:
        events = answer_of(tool_chunk(0, "{}", name="f"), chat_chunk({}, finish="stop"))
        assert events[-1]["delta"]["stop_reason"] == "tool_use"

    @given(
        words=st.lists(st.text(max_size=5), max_size=4),
        inputs=st.lists(INPUTS, max_size=4),
        late=st.text(max_size=5),
        data=st.data(),
    )
    def test_any_stream_becomes_blocks_in_order_and_loses_nothing(
        self, words: list[str], inputs: list[dict[str, Any]], late: str, data: st.DataObject
    ) -> None:
        """Also where pieces of several calls come interleaved, and words after them."""
        queues = []
        for index, value in enumerate(inputs):
            text = json.dumps(value)
            at = data.draw(st.integers(0, len(text)))
            queues.append(
                [tool_chunk(index, "", name=f"f{index}"), tool_chunk(index, text[:at]), tool_chunk(index, text[at:])]
            )
        chunks = [chat_chunk({"content": word}) for word in words]
        while any(queues):
            queue = data.draw(st.sampled_from([queue for queue in queues if queue]))
            chunks.append(queue.pop(0))
        chunks += [chat_chunk({"content": late}), chat_chunk({}, finish="stop")]
        events = answer_of(*chunks)
        blocks = check_order(events)
        tools = {block["name"]: json.loads(block["said"]) for block in blocks if block["type"] == "tool_use"}
        assert tools == {f"f{index}": value for index, value in enumerate(inputs)}
        assert "".join(block["said"] for block in blocks if block["type"] == "text") == "".join(words) + late
        message = Message.model_validate_json(fold(events))
        assert [block.type for block in message.content] == [block["type"] for block in blocks]
        assert {b.name: b.input for b in message.content if b.type == "tool_use"} == tools

    def test_an_answer_in_one_piece_is_the_same_as_its_stream(self) -> None:
        call = {"id": "call_0", "type": "function", "function": {"name": "f0", "arguments": '{"a":1}'}}
        whole = {
            "choices": [{"index": 0, "message": {"content": "x", "tool_calls": [call]}, "finish_reason": "tool_calls"}]
        }
        writer = EventWriter(CALL)
        events = writer.feed_whole(msgspec.json.encode(whole), NOTHING) + writer.end(USED)
        streamed = answer_of(
            chat_chunk({"content": "x"}), tool_chunk(0, '{"a":1}', name="f0"), chat_chunk({}, finish="tool_calls")
        )
        assert fold(events) == fold(streamed)

    @pytest.mark.parametrize("text", ["", "{", "[1]", "5"])
    def test_an_input_that_is_no_object_folds_into_an_empty_one(self, text: str) -> None:
        message = Message.model_validate_json(fold(answer_of(tool_chunk(0, text, name="f"))))
        assert message.content[0].type == "tool_use"
        assert message.content[0].input == {}


def test_events_name_their_type_twice_and_stand_on_one_line() -> None:
    raw = write([{"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "a\n\nb"}}])
    name, data, *rest = raw.decode().split("\n")
    assert name == "event: content_block_delta"
    assert json.loads(data.removeprefix("data: "))["delta"]["text"] == "a\n\nb"
    assert rest == ["", ""]
