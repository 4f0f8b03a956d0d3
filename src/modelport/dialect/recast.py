"""One answer in the other forms of OpenAI's dialect: a stream out of a whole answer, a stream with or without usage.

The way from a stream to a whole answer is `modelport.dialect.openai.fold`.

Source: OpenAI API reference (chat completion chunk object; `stream_options.include_usage`), as of 2026-11.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec

from modelport.calls import Usage
from modelport.dialect.openai import events, usage_body

_HEAD = ("id", "object", "created", "model", "system_fingerprint")
_STREAMED = {"chat.completion": "chat.completion.chunk"}
_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder().decode


class Retold:
    """A stream's events as they are for a call that did (or did not) ask for usage. One for each answer."""

    __slots__ = ("_head", "_include_usage")

    def __init__(self, *, include_usage: bool) -> None:
        self._include_usage = include_usage
        self._head: dict[str, Any] = {}

    def events(self, raw: bytes) -> bytes:
        """These events, told anew; the one that has nothing but usage is left out."""
        told = []
        for chunk in events(raw):
            self._head = self._head or {name: chunk[name] for name in _HEAD if name in chunk}
            chunk.pop("usage", None)
            if chunk.get("choices"):
                told.append(_event(chunk, include_usage=self._include_usage))
        return b"".join(told)

    def usage(self, usage: Usage) -> bytes:
        """The last event, where usage was asked for; else nothing."""
        if not self._include_usage:
            return b""
        return b"data: " + _encode({**self._head, "choices": [], "usage": usage_body(usage)}) + b"\n\n"


def unfold(body: bytes, usage: Usage, *, include_usage: bool) -> bytes:
    """The events of a stream that says what the whole answer `body` says, without the final `[DONE]`.

    Each choice's text is one chunk: nobody knows any more in which pieces it came.
    """
    answer = _decode(body)
    head = {name: answer[name] for name in _HEAD if name in answer}
    head["object"] = _STREAMED.get(head.get("object", ""), head.get("object"))
    told = [
        _event({**head, "choices": [part]}, include_usage=include_usage)
        for choice in answer.get("choices", ())
        for part in _parts(choice)
    ]
    if include_usage:
        told.append(b"data: " + _encode({**head, "choices": [], "usage": usage_body(usage)}) + b"\n\n")
    return b"".join(told)


def _event(chunk: dict[str, Any], *, include_usage: bool) -> bytes:
    return b"data: " + _encode({**chunk, "usage": None} if include_usage else chunk) + b"\n\n"


def _parts(choice: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """One choice of a whole answer as the choices of its chunks."""
    index, reason = choice.get("index", 0), choice.get("finish_reason")
    message = choice.get("message")
    if message is None:
        yield {
            "index": index,
            "text": choice.get("text", ""),
            "logprobs": choice.get("logprobs"),
            "finish_reason": None,
        }
        yield {"index": index, "text": "", "logprobs": None, "finish_reason": reason}
        return
    for delta, logprobs in _deltas(message, choice.get("logprobs")):
        yield {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": None}
    yield {"index": index, "delta": {}, "logprobs": None, "finish_reason": reason}


def _deltas(message: dict[str, Any], logprobs: Any) -> Iterator[tuple[dict[str, Any], Any]]:
    yield {"role": message.get("role", "assistant"), "content": "", "refusal": None}, None
    if message.get("content"):
        yield {"content": message["content"]}, logprobs
    if message.get("refusal"):
        yield {"refusal": message["refusal"]}, None
    # What else an upstream says of a message (reasoning, audio) it says under the same names in its chunks.
    known = ("role", "content", "refusal", "tool_calls", "annotations")
    rest = {name: value for name, value in message.items() if name not in known and value is not None}
    if rest:
        yield rest, None
    for place, tool in enumerate(message.get("tool_calls") or ()):
        function = tool.get("function") or {}
        start = {**tool, "index": place, "function": {**function, "arguments": ""}}
        yield {"tool_calls": [start]}, None
        arguments = {"index": place, "function": {"arguments": function.get("arguments", "")}}
        yield {"tool_calls": [arguments]}, None
