"""The output items of a response while they are being written: each opens, grows and closes with events of its own.

An event is a type and the members beside it; the writer numbers and encodes it before it asks for the next, so that
the members may be the item's own.

Source: OpenAI API reference (Responses: output items, streaming events), as of 2026-11.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

import msgspec

Event = tuple[str, dict[str, Any]]
SpeechKind = Literal["message", "reasoning"]
Status = Literal["in_progress", "completed", "incomplete"]
# The kinds of text a part can hold, and the member that has it.
_TEXTS = {"output_text": "text", "refusal": "refusal", "reasoning_text": "text"}


class Speech:
    """A message, or a chain of thought: parts of text, of which the last one grows."""

    __slots__ = ("_head", "_parts", "_pieces", "id", "index", "kind", "status")

    def __init__(self, kind: SpeechKind, *, id: str, index: int) -> None:
        self.kind = kind
        self.id = id
        self.index = index
        self.status: Status = "in_progress"
        self._head: dict[str, Any] = {"role": "assistant"} if kind == "message" else {"summary": []}
        self._parts: list[dict[str, Any]] = []
        self._pieces: list[str] = []

    @property
    def is_whole(self) -> bool:
        """Whether it may end here: words may end anywhere."""
        return True

    def open(self) -> Event:
        return "response.output_item.added", {"output_index": self.index, "item": self.body()}

    def goes_on_with(self, kind: str) -> bool:
        """Whether text of this kind belongs to the open part."""
        return bool(self._parts) and self._parts[-1]["type"] == kind

    def open_part(self, kind: str) -> Iterator[Event]:
        """A new part, behind the end of the one before."""
        yield from self._close_part()
        part: dict[str, Any] = {"type": kind, _TEXTS[kind]: ""}
        if kind == "output_text":
            part |= {"annotations": [], "logprobs": []}
        self._parts.append(part)
        yield "response.content_part.added", {**self.place(), "part": part}

    def add(self, text: str, logprobs: list[Any]) -> None:
        """A piece of the open part. What its event holds beside it is `place`, which the writer encodes once."""
        self._pieces.append(text)
        if logprobs:
            self._parts[-1]["logprobs"] += logprobs

    def place(self) -> dict[str, Any]:
        """Where the open part is."""
        return {"item_id": self.id, "output_index": self.index, "content_index": len(self._parts) - 1}

    def close(self, status: Status) -> Iterator[Event]:
        self.status = status
        yield from self._close_part()
        yield "response.output_item.done", {"output_index": self.index, "item": self.body()}

    def body(self) -> dict[str, Any]:
        self._join()
        return {"id": self.id, "type": self.kind, "status": self.status, **self._head, "content": self._parts}

    def _close_part(self) -> Iterator[Event]:
        if not self._parts:
            return
        self._join()
        part = self._parts[-1]
        kind, name = part["type"], _TEXTS[part["type"]]
        done = {**self.place(), name: part[name]}
        if kind == "output_text":
            done["logprobs"] = part["logprobs"]
        yield f"response.{kind}.done", done
        yield "response.content_part.done", {**self.place(), "part": part}

    def _join(self) -> None:
        """Pieces are joined when somebody looks: one by one, a long answer would take time that grows as its square."""
        if self._pieces:
            part = self._parts[-1]
            part[_TEXTS[part["type"]]] += "".join(self._pieces)
            self._pieces.clear()


class FunctionCall:
    """A function that the model wants to have called."""

    __slots__ = ("_arguments", "_call_id", "_name", "id", "index", "status")

    def __init__(self, *, id: str, index: int, call_id: str, name: str) -> None:
        self.id = id
        self.index = index
        self.status: Status = "in_progress"
        self._call_id = call_id
        self._name = name
        self._arguments: list[str] = []

    @property
    def is_whole(self) -> bool:
        """Whether its arguments are complete JSON, so that nothing can follow."""
        try:
            msgspec.json.decode("".join(self._arguments))
        except msgspec.DecodeError:
            return False
        return True

    def open(self) -> Event:
        return "response.output_item.added", {"output_index": self.index, "item": self.body()}

    def add(self, arguments: str) -> Event:
        self._arguments.append(arguments)
        return "response.function_call_arguments.delta", {**self._place(), "delta": arguments}

    def close(self, status: Status) -> Iterator[Event]:
        self.status = status
        body = self.body()
        done = {**self._place(), "name": self._name, "arguments": body["arguments"]}
        yield "response.function_call_arguments.done", done
        yield "response.output_item.done", {"output_index": self.index, "item": body}

    def body(self) -> dict[str, Any]:
        return {
            "id": self.id,
            "type": "function_call",
            "status": self.status,
            "call_id": self._call_id,
            "name": self._name,
            "arguments": "".join(self._arguments),
        }

    def _place(self) -> dict[str, Any]:
        return {"item_id": self.id, "output_index": self.index}
