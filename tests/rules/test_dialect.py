"""The OpenAI dialect: chunks as SDKs expect them, and folding that loses nothing of them."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from openai.types import Completion
from openai.types.chat import ChatCompletion, ChatCompletionChunk

from modelport.calls import Call, Caller, Operation, Usage
from modelport.dialect.openai import ChunkWriter, events, fold, usage_body, usage_from
from modelport.requests import ChatRequest, CompletionRequest

CALLER = Caller("org_a", "proj_a", "key_a", "live", frozenset(), "free")
USAGE = Usage(input_tokens=9, output_tokens=4, cached_tokens=3, reasoning_tokens=1)


def call_of(operation: Operation = Operation.CHAT, **body: Any) -> Call:
    raw = msgspec.json.encode(
        {"model": 'a "model"', "messages": [{"role": "user", "content": "x"}], "prompt": "x"} | body
    )
    request: Any = msgspec.json.decode(raw, type=ChatRequest if operation is Operation.CHAT else CompletionRequest)
    return Call(
        id="req_" + "1" * 32,
        caller=CALLER,
        endpoint="/v1/x",
        operation=operation,
        model=request.model,
        request=request,
        fields={},
        started_us=1_700_000_000_999_999,
        started_s=0.0,
        deadline_s=600.0,
        stream=bool(request.stream),
    )


def writer(operation: Operation = Operation.CHAT, **body: Any) -> ChunkWriter:
    return ChunkWriter(call_of(operation, **body), fingerprint="fp_x")


ASKED: dict[str, Any] = {"stream": True, "stream_options": {"include_usage": True}}


class TestWriter:
    def test_every_chunk_is_one_event_that_the_sdk_understands(self) -> None:
        chat = writer(**ASKED)
        pieces = [chat.role(), chat.text("é\n\n"), chat.tool_start(0, id="call_1", name="f")]
        pieces += [chat.tool_arguments(0, '{"a'), chat.finish("stop"), chat.usage(USAGE)]
        for piece in pieces:
            assert piece.startswith(b"data: {")
            assert piece.endswith(b"}\n\n")
            assert piece.count(b"\n") == 2
            chunk = ChatCompletionChunk.model_validate_json(piece[6:])
            assert (chunk.id, chunk.created, chunk.model) == ("chatcmpl-" + "1" * 32, 1_700_000_000, 'a "model"')
            assert chunk.system_fingerprint == "fp_x"

    def test_the_first_chunk_of_a_choice_opens_it_as_openai_does(self) -> None:
        (chunk,) = events(writer().role(2))
        delta = {"role": "assistant", "content": "", "refusal": None}
        assert chunk["choices"] == [{"index": 2, "delta": delta, "logprobs": None, "finish_reason": None}]

    @pytest.mark.parametrize("operation", [Operation.CHAT, Operation.COMPLETION])
    def test_usage_is_in_every_chunk_or_in_none(self, operation: Operation) -> None:
        loud, quiet = writer(operation, **ASKED), writer(operation, stream=True)
        for asked in (loud.text("x"), loud.finish("stop")):
            assert next(events(asked))["usage"] is None
        (last,) = events(loud.usage(USAGE))
        assert (last["choices"], last["usage"]["total_tokens"]) == ([], 13)
        assert b"usage" not in quiet.text("x") + quiet.finish("stop")
        assert quiet.usage(USAGE) == b""


class TestFold:
    def test_a_chat_becomes_the_answer_of_a_call_that_did_not_stream(self) -> None:
        chat = writer()
        body = fold([chat.role(), chat.text("Hel"), chat.text("lo"), chat.finish("stop")], USAGE)
        answer = ChatCompletion.model_validate_json(body)
        message = json.loads(body)["choices"][0]["message"]
        assert message == {"role": "assistant", "content": "Hello", "refusal": None, "annotations": []}
        assert (answer.object, answer.choices[0].finish_reason) == ("chat.completion", "stop")
        assert json.loads(body)["usage"] == usage_body(USAGE)

    def test_tool_calls_are_joined_by_their_index_and_content_is_null(self) -> None:
        chat = writer()
        pieces = [chat.role(), *(chat.tool_start(tool, id=f"call_{tool}", name=f"f{tool}") for tool in (1, 0))]
        pieces += [chat.tool_arguments(tool, part) for part in ('{"a"', ":1}") for tool in (0, 1)]
        message = json.loads(fold([*pieces, chat.finish("tool_calls")], USAGE))["choices"][0]["message"]
        assert message["content"] is None
        assert [tool["id"] for tool in message["tool_calls"]] == ["call_0", "call_1"]
        assert message["tool_calls"][1]["function"] == {"name": "f1", "arguments": '{"a":1}'}

    def test_choices_that_come_interleaved_are_taken_apart(self) -> None:
        text = writer(Operation.COMPLETION)
        pieces = [text.text(part, index=index) for part in "ab" for index in (1, 0)]
        body = fold([b"".join(pieces), text.finish("stop", index=1), text.finish("length", index=0)], USAGE)
        Completion.model_validate_json(body)
        choices = json.loads(body)["choices"]
        assert [(choice["text"], choice["finish_reason"]) for choice in choices] == [("ab", "length"), ("ab", "stop")]

    @pytest.mark.parametrize("first", [None, {"content": None, "refusal": None}])
    def test_log_probabilities_are_joined_also_when_the_first_are_null(self, first: Any) -> None:
        chat = writer()
        pieces = [chat.text(token, logprobs={"content": [{"token": token}], "refusal": None}) for token in "ab"]
        body = json.loads(fold([chat.text("", logprobs=first), *pieces], USAGE))
        assert body["choices"][0]["logprobs"] == {"content": [{"token": "a"}, {"token": "b"}], "refusal": None}

    @given(st.lists(st.text()), st.integers(1, 5))
    def test_no_text_is_lost_however_the_events_are_grouped(self, texts: list[str], group: int) -> None:
        chat = writer()
        pieces = [chat.text(text) for text in texts]
        grouped = [b"".join(pieces[i : i + group]) for i in range(0, len(pieces), group)]
        body = json.loads(fold([chat.role(), *grouped, chat.finish("stop")], USAGE))
        assert body["choices"][0]["message"]["content"] == "".join(texts)

    def test_comments_and_done_are_passed_over(self) -> None:
        chat = writer()
        pieces = [b": keep-alive\n\n", chat.role() + chat.text("x"), b"data: [DONE]\n\n"]
        assert json.loads(fold(pieces, USAGE))["choices"][0]["message"]["content"] == "x"


class TestUsage:
    def test_what_is_written_is_read_back(self) -> None:
        assert usage_from(usage_body(USAGE)) == USAGE

    @pytest.mark.parametrize(
        ("body", "usage"),
        [
            ({"prompt_tokens": 5, "total_tokens": 5}, Usage(5)),
            ({"prompt_tokens": 5, "total_tokens": 8}, Usage(5, 3)),
            ({"prompt_tokens": 5, "completion_tokens": 1, "prompt_tokens_details": None}, Usage(5, 1)),
            ({"prompt_tokens": 5, "prompt_tokens_details": {"cached_tokens": 9}}, Usage(5, cached_tokens=5)),
            ({"prompt_tokens": -1}, None),
            ({"prompt_tokens": "5"}, None),
            ({}, None),
            (None, None),
            ([], None),
        ],
    )
    def test_what_makes_no_sense_is_not_taken_for_usage(self, body: Any, usage: Usage | None) -> None:
        assert usage_from(body) == usage
