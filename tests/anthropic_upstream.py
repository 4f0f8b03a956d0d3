"""What a server of Anthropic's dialect answers, for `tests.upstream.Upstream`: messages, streams, refusals."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

from tests.upstream import Step, json_answer

USAGE = {"input_tokens": 9, "cache_creation_input_tokens": 2, "cache_read_input_tokens": 4, "output_tokens": 3}
MESSAGE: dict[str, Any] = {
    "id": "msg_upstream",
    "type": "message",
    "role": "assistant",
    "model": "claude-upstream",
    "content": [{"type": "text", "text": "Hello."}],
    "stop_reason": "end_turn",
    "stop_sequence": None,
    "usage": USAGE,
}
TOOL = {"type": "tool_use", "id": "toolu_1", "name": "weather", "input": {"city": "Oslo", "model": "claude-upstream"}}


def frame(body: dict[str, Any]) -> bytes:
    """One event as Anthropic writes it."""
    return f"event: {body['type']}\ndata: {json.dumps(body, separators=(',', ':'))}\n\n".encode()


def block(index: int, opening: dict[str, Any], deltas: Iterable[dict[str, Any]]) -> list[bytes]:
    """A block of an answer: its opening, its deltas, its end."""
    events = [{"type": "content_block_start", "index": index, "content_block": opening}]
    events += [{"type": "content_block_delta", "index": index, "delta": delta} for delta in deltas]
    return [*map(frame, events), frame({"type": "content_block_stop", "index": index})]


def text_block(index: int, texts: Iterable[str]) -> list[bytes]:
    return block(index, {"type": "text", "text": ""}, ({"type": "text_delta", "text": text} for text in texts))


def tool_block(index: int, pieces: Iterable[str], *, id: str = "toolu_1", name: str = "weather") -> list[bytes]:
    opening = {"type": "tool_use", "id": id, "name": name, "input": {}}
    return block(index, opening, ({"type": "input_json_delta", "partial_json": piece} for piece in pieces))


def thinking_block(index: int, text: str) -> list[bytes]:
    opening = {"type": "thinking", "thinking": "", "signature": ""}
    deltas = [{"type": "thinking_delta", "thinking": text}, {"type": "signature_delta", "signature": "c2ln" * 50}]
    return block(index, opening, deltas)


def message_stream(*blocks: list[bytes], reason: str = "end_turn", sequence: str | None = None) -> list[bytes]:
    """A whole stream; its usage is `USAGE`, told in two parts as Anthropic does."""
    start = {**MESSAGE, "content": [], "stop_reason": None, "usage": {**USAGE, "output_tokens": 1}}
    delta = {"stop_reason": reason, "stop_sequence": sequence}
    return [
        frame({"type": "message_start", "message": start}),
        frame({"type": "ping"}),
        *(event for events in blocks for event in events),
        frame({"type": "message_delta", "delta": delta, "usage": {"output_tokens": USAGE["output_tokens"]}}),
        frame({"type": "message_stop"}),
    ]


def refusal(code: int, kind: str, message: str = "No.", **headers: str | int) -> Step:
    """An error answer in Anthropic's form."""
    error = {"type": "error", "error": {"type": kind, "message": message}, "request_id": "req_upstream"}
    return json_answer(error, code, **headers)


def error_frame(kind: str, message: str = "secret") -> bytes:
    """What a stream says when it breaks after its first byte."""
    return frame({"type": "error", "error": {"type": kind, "message": message}})
