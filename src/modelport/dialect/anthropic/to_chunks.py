"""Messages events as chat chunks: what a backend yields to callers of OpenAI's dialect."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec

from modelport.calls import Usage
from modelport.dialect.anthropic.vocabulary import finish_reason
from modelport.dialect.anthropic.wire import Event
from modelport.dialect.openai import ChunkWriter

_encode = msgspec.json.Encoder().encode


class ChunkTranslator:
    """Translates one answer, event by event. Thoughts are left out: OpenAI's dialect has no place for them."""

    __slots__ = ("_open", "_silent", "_tools", "_writer")

    def __init__(self, writer: ChunkWriter) -> None:
        self._writer = writer
        # The block that is open, as a tool's number; None for words.
        self._open: int | None = None
        self._tools = 0
        # The open tool has got no arguments yet.
        self._silent = False

    def feed(self, event: Event) -> bytes:
        """The chunks of one event, perhaps none."""
        kind = event.get("type")
        if kind == "message_start":
            return self._writer.role()
        if kind == "content_block_start":
            return self._start(_part(event, "content_block"))
        if kind == "content_block_delta":
            return self._delta(_part(event, "delta"))
        if kind == "content_block_stop":
            return self._stop()
        if kind == "message_delta":
            reason = _part(event, "delta").get("stop_reason")
            return self._writer.finish(finish_reason(reason)) if isinstance(reason, str) else b""
        return b""

    def _start(self, block: dict[str, Any]) -> bytes:
        self._open = None
        if block.get("type") == "text":
            return self._writer.text(block["text"]) if block.get("text") else b""
        if block.get("type") != "tool_use":
            return b""
        self._open = self._tools
        self._tools += 1
        raw = self._writer.tool_start(self._open, id=str(block.get("id")), name=str(block.get("name")))
        self._silent = not block.get("input")
        if not self._silent:
            # Of an answer in one piece, or where a server does not stream inputs.
            raw += self._writer.tool_arguments(self._open, _encode(block["input"]).decode())
        return raw

    def _delta(self, delta: dict[str, Any]) -> bytes:
        text, arguments = delta.get("text"), delta.get("partial_json")
        if delta.get("type") == "text_delta" and isinstance(text, str):
            return self._writer.text(text)
        if self._open is not None and isinstance(arguments, str) and arguments:
            self._silent = False
            return self._writer.tool_arguments(self._open, arguments)
        return b""

    def end(self, usage: Usage) -> bytes:
        """The last chunk, where the caller asked for the usage."""
        return self._writer.usage(usage)

    def _stop(self) -> bytes:
        tool, self._open = self._open, None
        # A tool without parameters: clients read the arguments as JSON, which nothing is not.
        return self._writer.tool_arguments(tool, "{}") if tool is not None and self._silent else b""


def events_of(message: dict[str, Any]) -> Iterator[Event]:
    """An answer in one piece as the events that would have streamed it."""
    yield {"type": "message_start", "message": message}
    for block in message["content"]:
        yield {"type": "content_block_start", "content_block": block}
        yield {"type": "content_block_stop"}
    delta = {"stop_reason": message.get("stop_reason") or "end_turn"}
    yield {"type": "message_delta", "delta": delta, "usage": message.get("usage")}


def _part(event: Event, name: str) -> dict[str, Any]:
    part = event.get(name)
    return part if isinstance(part, dict) else {}
