"""Chat chunks as Messages events: what a door writes over a backend that speaks OpenAI's dialect.

An answer is a row of blocks, and one block at a time is open, while chunks may carry pieces of several tool calls in
any order. So each piece goes to its block, and the first block that has not ended is sent as far as it has come.
"""

from __future__ import annotations

from collections import deque
from typing import Any

import msgspec

from modelport.calls import Call, Usage
from modelport.dialect.anthropic.vocabulary import stop_reason, usage_body
from modelport.dialect.anthropic.wire import Event
from modelport.dialect.openai import events

_decode = msgspec.json.Decoder().decode


class _Block:
    """One block of the answer: how it opens, what it has to say, and what has not been sent of it yet."""

    __slots__ = ("arguments", "opening", "pending", "sent_start")

    def __init__(self, opening: dict[str, Any]) -> None:
        self.opening = opening
        self.pending: list[str] = []
        # All pieces of a tool's input, to see whether it is complete; None for words.
        self.arguments: list[str] | None = [] if opening["type"] == "tool_use" else None
        self.sent_start = False

    def add(self, text: str) -> None:
        self.pending.append(text)
        if self.arguments is not None:
            self.arguments.append(text)

    def is_whole(self) -> bool:
        """Whether nothing can come any more once another block has begun: words end so, an input when it is JSON."""
        if self.arguments is None:
            return True
        try:
            _decode("".join(self.arguments))
        except msgspec.DecodeError:
            return False
        return True

    def delta(self, text: str) -> dict[str, Any]:
        if self.arguments is None:
            return {"type": "text_delta", "text": text}
        return {"type": "input_json_delta", "partial_json": text}


class EventWriter:
    """Translates one answer. `feed` takes each piece of it, `end` closes it; both return events in their order.

    Of several choices the first is the answer. What a model thinks aloud is left out: without Anthropic's signature no
    client could send it back.
    """

    __slots__ = ("_blocks", "_call", "_index", "_stop_sequence", "_tools", "reason", "started")

    def __init__(self, call: Call) -> None:
        self._call = call
        self.started = False
        self._index = 0
        # The open block first, behind it those that wait for their turn.
        self._blocks: deque[_Block] = deque()
        self._tools: dict[int, _Block] = {}
        self._stop_sequence: str | None = None
        # OpenAI's word for why the answer ended; empty until it has.
        self.reason = ""

    def feed(self, raw: bytes, usage: Usage | None) -> list[Event]:
        """The events of a backend's piece: one or more chunks. `usage` is what is known so far."""
        out = self._opening(usage)
        for chunk in events(raw):
            self._take(chunk)
        self._send(out)
        return out

    def feed_whole(self, body: bytes, usage: Usage | None) -> list[Event]:
        """The same for an answer in one piece, which is a stream of one chunk."""
        out = self._opening(usage)
        answer = _decode(body)
        for choice in answer.get("choices") or ():
            message = choice.get("message") or {}
            calls = [{**call, "index": index} for index, call in enumerate(message.get("tool_calls") or ())]
            self._take({"choices": [{**choice, "delta": {**message, "tool_calls": calls}}]})
        self._send(out)
        return out

    def end(self, usage: Usage) -> list[Event]:
        """The last events but the terminal one. Totals count from the beginning, the input among them."""
        out = self._opening(usage)
        self._send(out, ended=True)
        reason = stop_reason(self.reason)
        if self._tools and reason == "end_turn":
            # Some servers call a call an ordinary end.
            reason = "tool_use"
        if self._stop_sequence is not None and reason == "end_turn":
            reason = "stop_sequence"
        delta = {"stop_reason": reason, "stop_sequence": self._stop_sequence if reason == "stop_sequence" else None}
        out.append({"type": "message_delta", "delta": delta, "usage": usage_body(usage)})
        return out

    def _opening(self, usage: Usage | None) -> list[Event]:
        if self.started:
            return []
        self.started = True
        message: dict[str, Any] = {
            "id": f"msg_{self._call.id[4:]}",
            "type": "message",
            "role": "assistant",
            # The one that answers, which is known by now.
            "model": self._call.model,
            "content": [],
            "stop_reason": None,
            "stop_sequence": None,
            "usage": usage_body(usage or Usage()),
        }
        return [{"type": "message_start", "message": message}]

    def _take(self, chunk: dict[str, Any]) -> None:
        """Put what a chunk says into its blocks."""
        for choice in chunk.get("choices") or ():
            if choice.get("index"):
                continue
            delta = choice.get("delta") or {}
            for name in ("content", "refusal"):
                if isinstance(delta.get(name), str) and delta[name]:
                    self._words().add(delta[name])
            if delta.get("refusal"):
                self.reason = "content_filter"
            for call in delta.get("tool_calls") or ():
                self._tool_call(call)
            self.reason = self.reason or choice.get("finish_reason") or ""
            # Where the engine says which of the caller's sequences ended the answer (as vLLM does).
            if isinstance(choice.get("stop_reason"), str):
                self._stop_sequence = choice["stop_reason"]

    def _words(self) -> _Block:
        if not self._blocks or self._blocks[-1].arguments is not None:
            self._blocks.append(_Block({"type": "text", "text": ""}))
        return self._blocks[-1]

    def _tool_call(self, call: dict[str, Any]) -> None:
        index = call.get("index", 0)
        function = call.get("function") or {}
        block = self._tools.get(index)
        if block is None:
            name = function.get("name") or ""
            id_ = call.get("id") or f"toolu_{index}"
            block = self._tools[index] = _Block({"type": "tool_use", "id": id_, "name": name, "input": {}})
            self._blocks.append(block)
        if function.get("arguments"):
            block.add(function["arguments"])

    def _send(self, out: list[Event], *, ended: bool = False) -> None:
        """Send the open block as far as it has come, and those behind it once it has ended."""
        blocks = self._blocks
        while blocks:
            block = blocks[0]
            if not block.sent_start:
                block.sent_start = True
                out.append({"type": "content_block_start", "index": self._index, "content_block": block.opening})
            if block.pending:
                delta = block.delta("".join(block.pending))
                block.pending.clear()
                out.append({"type": "content_block_delta", "index": self._index, "delta": delta})
            if not ended and (len(blocks) == 1 or not block.is_whole()):
                return
            out.append({"type": "content_block_stop", "index": self._index})
            self._index += 1
            blocks.popleft()
