"""An answer that is bounded by money: made shorter before it begins, and stopped where it outgrows its bound."""

from __future__ import annotations

from typing import Any

import msgspec

from modelport.calls import Call, Delta, Usage
from modelport.dialect.openai import ChunkWriter, events


def shorten(call: Call, output_tokens: int) -> None:
    """Bound each answer of the call by `output_tokens`, in the request as the caller wrote it.

    Where the caller set a bound, that member is changed; where none, the backend is told the bound beside the request.
    """
    request = call.request
    for name in ("max_completion_tokens", "max_tokens"):
        if getattr(request, name, None) is not None:
            setattr(request, name, output_tokens)
            call.fields = {**call.fields, name: msgspec.Raw(b"%d" % output_tokens)}


class Ceiling:
    """Watches one answer's usage. A backend that keeps to its bound never meets it.

    The piece that crosses the ceiling is still passed on, since it is made; nothing after it is.
    """

    __slots__ = ("_call", "_choices", "_finished", "_output_tokens")

    def __init__(self, call: Call, *, output_tokens: int, choices: int) -> None:
        """`output_tokens` are those of all choices together."""
        self._call = call
        self._choices = choices
        self._output_tokens = output_tokens
        self._finished: set[int] = set()

    def ending(self, delta: Delta, usage: Usage) -> Delta | None:
        """What ends the answer properly behind `delta`, if it is to end there; `usage` is the total so far."""
        crossed = usage.output_tokens > self._output_tokens
        # An answer in another dialect tells its count with its end, so that nothing is left to be ended.
        if delta.whole or delta.original or not (crossed or self._choices > 1):
            return None
        chunks = _chunks(delta.raw)
        for chunk in chunks:
            for choice in chunk.get("choices") or ():
                if choice.get("finish_reason"):
                    self._finished.add(choice.get("index", 0))
        left = [index for index in range(self._choices) if index not in self._finished]
        if not crossed or not left or not chunks:
            # Where every choice has ended by itself, what is still to come is the count.
            return None
        writer = ChunkWriter(self._call, fingerprint="", like=chunks[-1])
        raw = b"".join(writer.finish("length", index=index) for index in left)
        return Delta(raw + writer.usage(usage), usage=usage, timed=False)


def _chunks(raw: bytes) -> list[dict[str, Any]]:
    """The chunks of a piece; none where an upstream's can't be read, which is passed on as it is."""
    try:
        return [chunk for chunk in events(raw) if isinstance(chunk, dict)]
    except msgspec.DecodeError:
        return []
