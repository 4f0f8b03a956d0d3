"""Answers in the Responses dialect: the events of hand-written chats, in order, and what they add up to."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any, get_args

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from openai import omit
from openai.lib.streaming.responses._responses import ResponseStreamState
from openai.types.responses import Response, ResponseStreamEvent

from modelport.calls import Call, Caller, Operation, Usage
from modelport.dialect.openai import events
from modelport.dialect.responses.answer import ResponseWriter
from modelport.errors import UpstreamFailed
from modelport.requests import ResponsesRequest

CALLER = Caller("org_a", "proj_a", "key_a", "live", frozenset(), "free")
USAGE = Usage(input_tokens=9, output_tokens=4, cached_tokens=3, reasoning_tokens=1)
# The SDK's own type of each event, found by its name: to try them all would take a second an event.
MODELS = {
    get_args(model.model_fields["type"].annotation)[0]: model for model in get_args(get_args(ResponseStreamEvent)[0])
}
TEXT = ["response.output_item.added", "response.content_part.added", "response.output_text.delta"]
TEXT_DONE = ["response.output_text.done", "response.content_part.done", "response.output_item.done"]


def writer(*, stream: bool = True, **body: Any) -> ResponseWriter:
    request = msgspec.convert({"model": "m", "input": "x", "stream": stream} | body, ResponsesRequest)
    call = Call(
        id="req_" + "1" * 32,
        caller=CALLER,
        endpoint="/v1/responses",
        operation=Operation.CHAT,
        model="m",
        request=None,
        fields={},
        started_us=1_700_000_000_999_999,
        started_s=0.0,
        deadline_s=600.0,
        stream=stream,
    )
    return ResponseWriter(call, request)


def chunk(delta: Any, *, finish: str | None = None, **choice: Any) -> bytes:
    body = {"choices": [{"index": 0, "delta": delta, "finish_reason": finish, **choice}]}
    return b"data: " + msgspec.json.encode(body) + b"\n\n"


def tool(index: int, arguments: str, **start: str) -> bytes:
    """A piece of call number `index`; with `id` and `name` its first."""
    function = {"arguments": arguments} | ({"name": start["name"]} if start else {})
    return chunk({"tool_calls": [{"index": index, "function": function} | ({"id": start["id"]} if start else {})]})


def read(raw: bytes) -> list[dict[str, Any]]:
    """The events, each checked against the SDK's own types: name and type agree, numbers count up from 0."""
    found = list(events(raw))
    names = [line[7:] for line in raw.decode().split("\n") if line.startswith("event: ")]
    assert names == [event["type"] for event in found]
    assert [event["sequence_number"] for event in found] == list(range(len(found)))
    for event in found:
        MODELS[event["type"]].model_validate(event)
    return found


def run(*chunks: bytes, usage: Usage = USAGE, **body: Any) -> list[dict[str, Any]]:
    answer = writer(**body)
    return read(answer.start() + b"".join(answer.take(raw) for raw in chunks) + answer.end(usage))


def kinds(found: Iterable[dict[str, Any]]) -> list[str]:
    """The types in order; a run of one type is told once."""
    out: list[str] = []
    for event in found:
        if not out or out[-1] != event["type"]:
            out.append(event["type"])
    return out


def output_of(found: list[dict[str, Any]]) -> list[dict[str, Any]]:
    output: list[dict[str, Any]] = found[-1]["response"]["output"]
    return output


class TestOrder:
    def test_plain_text_has_the_order_that_the_contract_names(self) -> None:
        opening = chunk({"role": "assistant", "content": "", "refusal": None})
        found = run(opening, chunk({"content": "Hel"}), chunk({"content": "lo"}), chunk({}, finish="stop"))
        assert [event["type"] for event in found] == [
            "response.created",
            "response.in_progress",
            *TEXT,
            "response.output_text.delta",
            *TEXT_DONE,
            "response.completed",
        ]
        response = found[-1]["response"]
        assert response["id"] == found[0]["response"]["id"] == "resp_" + "1" * 32
        assert response["output"][0]["content"][0]["text"] == "Hello"
        assert response["usage"] == {
            "input_tokens": 9,
            "input_tokens_details": {"cached_tokens": 3, "cache_write_tokens": 0},
            "output_tokens": 4,
            "output_tokens_details": {"reasoning_tokens": 1},
            "total_tokens": 13,
        }

    def test_a_thought_an_answer_and_calls_are_items_one_after_the_other(self) -> None:
        found = run(
            chunk({"reasoning_content": "Hm."}),
            chunk({"content": "I look."}),
            tool(0, "", id="call_a", name="f"),
            tool(0, '{"a":1}'),
            tool(1, '{"b":2}', id="call_b", name="g"),
            chunk({}, finish="tool_calls"),
        )
        call = ["response.output_item.added", "response.function_call_arguments.delta"]
        call += ["response.function_call_arguments.done", "response.output_item.done"]
        thought = ["response.output_item.added", "response.content_part.added", "response.reasoning_text.delta"]
        thought += ["response.reasoning_text.done", "response.content_part.done", "response.output_item.done"]
        assert kinds(found)[2:-1] == [*thought, *TEXT, *TEXT_DONE, *call, *call]
        output = output_of(found)
        assert [item["type"] for item in output] == ["reasoning", "message", "function_call", "function_call"]
        assert [item["status"] for item in output] == ["completed"] * 4
        assert (output[3]["call_id"], output[3]["name"], output[3]["arguments"]) == ("call_b", "g", '{"b":2}')
        assert len({item["id"] for item in output}) == 4

    def test_a_refusal_is_a_part_of_its_message(self) -> None:
        found = run(chunk({"content": "Well. "}), chunk({"refusal": "No"}), chunk({"refusal": "."}, finish="stop"))
        assert kinds(found)[2:-1] == [
            *TEXT,
            *TEXT_DONE[:2],
            "response.content_part.added",
            "response.refusal.delta",
            "response.refusal.done",
            *TEXT_DONE[1:],
        ]
        (message,) = output_of(found)
        assert message["content"][1] == {"type": "refusal", "refusal": "No."}

    def test_calls_that_are_written_by_turns_lose_nothing(self) -> None:
        found = run(
            tool(0, '{"a"', id="call_a", name="f"),
            tool(1, '{"b"', id="call_b", name="g"),
            tool(0, ":1}"),
            tool(1, ":2}"),
            chunk({}, finish="tool_calls"),
        )
        assert [item["arguments"] for item in output_of(found)] == ['{"a":1}', '{"b":2}']

    def test_an_answer_without_a_word_is_an_empty_text(self) -> None:
        found = run(chunk({"role": "assistant", "content": ""}), chunk({}, finish="stop"))
        assert kinds(found)[2:-1] == [*TEXT[:2], *TEXT_DONE]
        assert output_of(found)[0]["content"][0]["text"] == ""


class TestEnds:
    @pytest.mark.parametrize(
        ("finish", "reason"), [("length", "max_output_tokens"), ("content_filter", "content_filter")]
    )
    def test_an_answer_that_was_cut_is_incomplete(self, finish: str, reason: str) -> None:
        found = run(chunk({"content": "Hel"}), chunk({}, finish=finish))
        assert found[-1]["type"] == "response.incomplete"
        assert found[-1]["response"]["incomplete_details"] == {"reason": reason}
        assert output_of(found)[0]["status"] == "incomplete"

    def test_a_failure_is_told_with_what_was_said_before_it(self) -> None:
        answer = writer()
        raw = answer.start() + answer.take(chunk({"content": "Hel"})) + answer.fail(UpstreamFailed("Gone."))
        last = read(raw)[-1]
        assert last["type"] == "response.failed"
        assert last["response"]["error"]["type"] == "upstream_failed"
        assert last["response"]["error"]["code"] == "server_error"
        assert last["response"]["error"]["message"] == "Gone."
        assert last["response"]["output"][0]["content"][0]["text"] == "Hel"
        assert last["response"]["output"][0]["status"] == "incomplete"

    def test_a_failure_before_the_first_event_is_one_event(self) -> None:
        assert [event["type"] for event in read(writer().fail(UpstreamFailed()))] == ["response.failed"]


class TestWhole:
    def test_an_answer_that_came_at_once_reads_as_one_that_came_in_chunks(self) -> None:
        message = {
            "role": "assistant",
            "content": "I look.",
            "tool_calls": [{"id": "call_a", "type": "function", "function": {"name": "f", "arguments": "{}"}}],
        }
        body = {"choices": [{"index": 0, "message": message, "finish_reason": "tool_calls"}]}
        whole, pieces = writer(stream=False), writer(stream=False)
        whole.take_whole(msgspec.json.encode(body))
        raw = pieces.take(chunk({"content": "I "}) + chunk({"content": "look."}))
        raw += pieces.take(tool(0, "{}", id="call_a", name="f") + chunk({}, finish="tool_calls"))
        assert (raw, whole.end(USAGE), pieces.end(USAGE)) == (b"", b"", b"")
        assert whole.body(USAGE) == pieces.body(USAGE)
        response = Response.model_validate_json(whole.body(USAGE))
        assert (response.output_text, response.status) == ("I look.", "completed")

    def test_a_response_repeats_what_was_asked(self) -> None:
        answer = writer(stream=False, instructions="Be brief.", metadata={"a": "b"}, max_output_tokens=3, store=True)
        answer.end(USAGE)
        body = json.loads(answer.body(USAGE))
        assert (body["instructions"], body["metadata"], body["max_output_tokens"]) == ("Be brief.", {"a": "b"}, 3)
        assert body["store"] is False
        assert body["text"] == {"format": {"type": "text"}}

    def test_log_probabilities_are_in_the_delta_and_in_the_part(self) -> None:
        token = {"token": "Hi", "logprob": -0.1, "bytes": [72, 105], "top_logprobs": []}
        found = run(chunk({"content": "Hi"}, logprobs={"content": [token], "refusal": None}), chunk({}, finish="stop"))
        delta = next(event for event in found if event["type"] == "response.output_text.delta")
        assert delta["logprobs"] == output_of(found)[0]["content"][0]["logprobs"] == [token]


_ODD = st.none() | st.integers() | st.text(max_size=3) | st.lists(st.integers(), max_size=2) | st.just({})
_TOOL = st.fixed_dictionaries(
    {},
    optional={
        "index": st.integers(0, 2) | _ODD,
        "id": st.text(max_size=3) | _ODD,
        "function": st.fixed_dictionaries(
            {},
            optional={"name": st.text(max_size=3) | _ODD, "arguments": st.sampled_from(['{"a"', ":1}", "{}"]) | _ODD},
        )
        | _ODD,
    },
)
_DELTA = st.fixed_dictionaries(
    {},
    optional={
        "content": st.text(max_size=4) | _ODD,
        "refusal": st.text(max_size=4) | _ODD,
        "reasoning_content": st.text(max_size=4) | _ODD,
        "tool_calls": st.lists(_TOOL | _ODD, max_size=3) | _ODD,
    },
)


# The first example pays for the SDK's types.
@settings(deadline=None)
@given(
    deltas=st.lists(_DELTA | _ODD, max_size=8),
    finish=st.sampled_from(["stop", "length", "tool_calls", "content_filter", None, "odd"]),
    failed=st.booleans(),
)
def test_any_chat_becomes_events_that_the_sdk_can_follow(deltas: list[Any], finish: str | None, failed: bool) -> None:
    """Whatever comes, in whatever order: valid numbered events, every opened item closed, a terminal event last."""
    answer = writer()
    raw = answer.start() + b"".join(answer.take(chunk(delta)) for delta in deltas)
    raw += answer.fail(UpstreamFailed()) if failed else answer.take(chunk({}, finish=finish)) + answer.end(USAGE)
    found = read(raw)
    state: Any = ResponseStreamState(input_tools=[], text_format=omit)
    for event in found:
        state.handle_event(MODELS[event["type"]].model_validate(event))
    last = found[-1]["type"]
    assert last in ("response.completed", "response.incomplete", "response.failed")
    said = "".join(delta["content"] for delta in deltas if isinstance(delta, dict) and _text(delta.get("content")))
    parts = [part for item in output_of(found) for part in item.get("content", ())]
    assert "".join(part["text"] for part in parts if part["type"] == "output_text") == said
    if last != "response.failed":
        opened = [event["output_index"] for event in found if event["type"] == "response.output_item.added"]
        closed = [event["output_index"] for event in found if event["type"] == "response.output_item.done"]
        assert opened == sorted(closed) == list(range(len(output_of(found))))


def _text(value: Any) -> bool:
    return isinstance(value, str)
