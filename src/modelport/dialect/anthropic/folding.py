"""Messages events folded into one message: the answer of a call that did not ask to stream."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import msgspec

from modelport.dialect.anthropic.wire import Event

_decode = msgspec.json.Decoder().decode
_encode = msgspec.json.Encoder().encode


def fold(events: Iterable[Event]) -> bytes:
    """The JSON body of the message that the events tell."""
    message: dict[str, Any] = {}
    pieces: list[str] = []
    for event in events:
        kind = event["type"]
        if kind == "message_start":
            message = {**event["message"], "content": []}
        elif kind == "content_block_start":
            message["content"].append(dict(event["content_block"]))
            pieces = []
        elif kind == "content_block_delta":
            delta = event["delta"]
            pieces.append(delta.get("text") or delta.get("partial_json") or "")
        elif kind == "content_block_stop":
            _close(message["content"][-1], "".join(pieces))
        elif kind == "message_delta":
            message |= event["delta"]
            message["usage"] = event["usage"]
    return _encode(message)


def _close(block: dict[str, Any], text: str) -> None:
    if block["type"] == "text":
        block["text"] = text
    elif block["type"] == "tool_use":
        block["input"] = _input(text)


def _input(text: str) -> dict[str, Any]:
    """A tool's input; empty where the model was cut off inside it, since half a JSON object is none."""
    try:
        value = _decode(text or "{}")
    except msgspec.DecodeError:
        return {}
    return value if isinstance(value, dict) else {}
