"""One call's answer: the engine's pieces as chunks of OpenAI's dialect, with the usage after each."""

from __future__ import annotations

from typing import Any

import msgspec

from modelport.backends.llamacpp.schemas import Schema
from modelport.backends.llamacpp.tools import ToolReader, Tools
from modelport.backends.llamacpp.wire import Piece
from modelport.calls import Call, Delta, Operation, Usage
from modelport.dialect.openai import ChunkWriter
from modelport.errors import BadRequest, UpstreamFailed

_JSON_STARTS = frozenset('{["-0123456789tfn')
_UNENFORCED = (
    "The JSON schema can't be enforced by this model's engine: perhaps nothing satisfies it, or it is too complex"
)


class Choice:
    """One choice of the answer while it grows. `prompt` says which prompt it belongs to."""

    __slots__ = ("begun", "ended", "offset", "output_tokens", "prompt", "reader", "text")

    def __init__(self, prompt: int, reader: ToolReader | None) -> None:
        self.prompt = prompt
        self.reader = reader
        self.begun = False
        self.ended = False
        self.offset = 0
        self.output_tokens = 0
        self.text: list[str] = []


class Answer:
    """Turns pieces into deltas. `prompts` are the prompts' lengths in tokens; each has `n` choices, in their order.

    A prompt is charged once, when the first of its choices begins.
    """

    def __init__(self, call: Call, *, prompts: list[int], n: int, tools: Tools | None, schema: Schema | None) -> None:
        self._call = call
        self._chat = call.operation is Operation.CHAT
        self._prompts = prompts
        self._charged: dict[int, int] = {}
        self._tools = tools
        self._schema = schema
        total = len(prompts) * n
        self._choices = [Choice(index // n, ToolReader() if tools else None) for index in range(total)]
        self._open = total
        self._output = 0

    @property
    def finished(self) -> bool:
        return self._open == 0

    def usage(self) -> Usage:
        """What has been consumed so far."""
        return Usage(
            input_tokens=sum(self._prompts[prompt] for prompt in self._charged),
            output_tokens=self._output,
            cached_tokens=sum(self._charged.values()),
        )

    def take(self, piece: Piece, writer: ChunkWriter, *, before: str = "") -> Delta:
        """The delta for one piece; `before` is put before the choice's first text (the prompt, for `echo`).

        Raises: BadRequest for a schema that can't be enforced, UpstreamFailed for an answer that broke it.
        """
        choice = self._choices[piece.index]
        self._output += piece.output_tokens - choice.output_tokens
        choice.output_tokens = piece.output_tokens
        self._charged.setdefault(choice.prompt, piece.cached_tokens)
        if choice.ended:
            return Delta(usage=self.usage(), timed=False)
        raw = self._opening(choice, piece.index, writer, before)
        raw += self._body(choice, piece, writer)
        if piece.finish or (choice.reader is not None and choice.reader.ended):
            choice.ended = True
            self._open -= 1
            self._judge(choice, piece.finish)
            raw += writer.finish(self._reason(choice, piece.finish), index=piece.index, stop=piece.stop)
        usage = self.usage()
        if self.finished:
            raw += writer.usage(usage)
        return Delta(raw=raw, usage=usage, timed=bool(raw))

    def _opening(self, choice: Choice, index: int, writer: ChunkWriter, before: str) -> bytes:
        if choice.begun:
            return b""
        choice.begun = True
        if self._chat:
            return writer.role(index)
        choice.offset = len(before)
        return writer.text(before, index=index) if before else b""

    def _body(self, choice: Choice, piece: Piece, writer: ChunkWriter) -> bytes:
        if choice.reader is not None:
            return self._tool_body(choice, piece, writer)
        if self._schema is not None:
            self._watch(choice, piece.text)
        logprobs = self._logprobs(choice, piece.logprobs) if piece.logprobs else None
        choice.offset += len(piece.text)
        if not piece.text and logprobs is None:
            return b""
        return writer.text(piece.text, index=piece.index, logprobs=logprobs)

    def _tool_body(self, choice: Choice, piece: Piece, writer: ChunkWriter) -> bytes:
        assert choice.reader is not None
        assert self._tools is not None
        raw = b""
        for kind, tool, text in choice.reader.feed(piece.text):
            if kind == "start":
                raw += writer.tool_start(tool, id=self._tool_id(piece.index, tool), name=text, index=piece.index)
            elif kind == "arguments":
                raw += writer.tool_arguments(tool, text, index=piece.index)
            elif self._tools.required:
                raise BadRequest(f"{_UNENFORCED}.", param="tools")
            else:
                raw += writer.text(text, index=piece.index)
        return raw

    def _tool_id(self, index: int, tool: int) -> str:
        """Unique within what a client may keep together: the call's own id makes it so."""
        return f"call_{self._call.id[4:]}{index:02d}{tool:02d}"

    def _watch(self, choice: Choice, text: str) -> None:
        """Keep the text of a JSON answer, and see at its first letter whether a grammar is at work at all."""
        if not choice.text and text.strip() and text.lstrip()[0] not in _JSON_STARTS:
            raise BadRequest(f"{_UNENFORCED}.", param="response_format")
        choice.text.append(text)

    def _judge(self, choice: Choice, finish: str) -> None:
        cut = finish == "length" or self._call.request.stop
        if self._schema is not None and not cut and not self._schema.holds("".join(choice.text)):
            raise UpstreamFailed("The model's answer does not follow the JSON schema, so it is of no use.")

    def _reason(self, choice: Choice, finish: str) -> str:
        called = choice.reader is not None and choice.reader.calls > 0
        return "tool_calls" if called and finish != "length" else finish or "stop"

    def _logprobs(self, choice: Choice, raw: bytes) -> Any:
        items = msgspec.json.decode(raw).get("content") or []
        if self._chat:
            wanted = self._call.request.top_logprobs or 0
            return {"content": [_chat_item(item, wanted) for item in items], "refusal": None}
        return _completion_logprobs(items, choice.offset, self._call.request.logprobs or 0)


def _entry(item: dict[str, Any]) -> dict[str, Any]:
    return {"token": item["token"], "logprob": item["logprob"], "bytes": item.get("bytes")}


def _chat_item(item: dict[str, Any], wanted: int) -> dict[str, Any]:
    return {**_entry(item), "top_logprobs": [_entry(top) for top in item.get("top_logprobs", ())[:wanted]]}


def _completion_logprobs(items: list[dict[str, Any]], offset: int, wanted: int) -> dict[str, Any]:
    offsets = []
    for item in items:
        offsets.append(offset)
        offset += len(item["token"])
    return {
        "tokens": [item["token"] for item in items],
        "token_logprobs": [item["logprob"] for item in items],
        "top_logprobs": [
            {top["token"]: top["logprob"] for top in item.get("top_logprobs", ())[:wanted]} for item in items
        ],
        "text_offset": offsets,
    }
