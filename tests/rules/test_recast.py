"""An answer in the other forms of OpenAI's dialect says the same in every form."""

from __future__ import annotations

import json
from typing import Any

import pytest

from modelport.calls import Usage
from modelport.dialect.openai import events, fold, usage_body
from modelport.dialect.recast import Retold, unfold

USAGE = Usage(12, 5, cached_tokens=3)
HEAD = {"id": "chatcmpl-1", "created": 1, "model": "m", "system_fingerprint": "fp"}
TOOL = {"id": "call_1", "type": "function", "function": {"name": "look", "arguments": '{"a": 1}'}}
LOGPROBS = {"content": [{"token": "hi", "logprob": -0.1}], "refusal": None}


def chat(*messages: dict[str, Any], logprobs: Any = None) -> dict[str, Any]:
    choices = [
        {
            "index": index,
            "message": {"role": "assistant", "content": None, "refusal": None, "annotations": [], **message},
            "logprobs": logprobs,
            "finish_reason": "stop",
        }
        for index, message in enumerate(messages)
    ]
    return {**HEAD, "object": "chat.completion", "choices": choices, "usage": usage_body(USAGE)}


ANSWERS = {
    "text": chat({"content": "hello"}),
    "several": chat({"content": "one"}, {"content": "two"}),
    "tools": chat({"tool_calls": [TOOL, {**TOOL, "id": "call_2"}]}),
    "refusal": chat({"content": "", "refusal": "no"}),
    "logprobs": chat({"content": "hi"}, logprobs=LOGPROBS),
    "completion": {
        **HEAD,
        "object": "text_completion",
        "choices": [{"text": "hello", "index": 0, "logprobs": None, "finish_reason": "length"}],
        "usage": usage_body(USAGE),
    },
}


@pytest.mark.parametrize("include_usage", [True, False])
@pytest.mark.parametrize("name", ANSWERS)
def test_a_whole_answer_unfolds_into_a_stream_that_folds_into_it(name: str, include_usage: bool) -> None:
    stream = unfold(json.dumps(ANSWERS[name]).encode(), USAGE, include_usage=include_usage)
    assert json.loads(fold([stream], USAGE)) == ANSWERS[name]
    check_usage(stream, include_usage=include_usage)


def test_a_chat_stream_begins_with_its_role_and_ends_with_its_reason() -> None:
    first, *_, last = events(unfold(json.dumps(ANSWERS["text"]).encode(), USAGE, include_usage=False))
    assert first["choices"][0]["delta"] == {"role": "assistant", "content": "", "refusal": None}
    assert first["object"] == "chat.completion.chunk"
    assert (last["choices"][0]["delta"], last["choices"][0]["finish_reason"]) == ({}, "stop")


@pytest.mark.parametrize("name", ANSWERS)
@pytest.mark.parametrize("made", [True, False])
@pytest.mark.parametrize("wanted", [True, False])
def test_a_stream_is_told_again_with_or_without_usage(name: str, made: bool, wanted: bool) -> None:
    stream = unfold(json.dumps(ANSWERS[name]).encode(), USAGE, include_usage=made)
    retold = Retold(include_usage=wanted)
    pieces = [retold.events(piece + b"\n\n") for piece in stream.split(b"\n\n") if piece]
    told = b"".join([*pieces, retold.usage(USAGE)])
    assert told == unfold(json.dumps(ANSWERS[name]).encode(), USAGE, include_usage=wanted)


def check_usage(stream: bytes, *, include_usage: bool) -> None:
    """As the wire format has it: null on every chunk and full on one more, or nowhere."""
    chunks = list(events(stream))
    if not include_usage:
        assert all("usage" not in chunk for chunk in chunks)
        return
    *chunks, last = chunks
    assert all(chunk["usage"] is None and chunk["choices"] for chunk in chunks)
    assert (last["choices"], last["usage"]) == ([], usage_body(USAGE))
    assert last["object"] == chunks[0]["object"]
