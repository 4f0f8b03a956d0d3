"""Gemini's answers as a chat's chunks: events of a stream, or the one body of an answer that does not stream."""

from __future__ import annotations

from typing import Any

import msgspec

from modelport.calls import Call, Usage
from modelport.dialect.openai import ChunkWriter
from modelport.errors import UpstreamFailed, UpstreamRejected

_encode = msgspec.json.Encoder().encode
_FINISH = {"STOP": "stop", "MAX_TOKENS": "length", "OTHER": "stop"}
_FILTERED = frozenset(
    {"SAFETY", "RECITATION", "LANGUAGE", "BLOCKLIST", "PROHIBITED_CONTENT", "SPII"}
    | {"IMAGE_SAFETY", "IMAGE_PROHIBITED_CONTENT", "IMAGE_RECITATION"}
)


class ChunkTranslator:
    """Translates one answer. `usage` is what Gemini reported, None until it did; `finished` once every candidate that
    began has ended; `size_bytes` counts the model's text, for where no usage ever comes."""

    __slots__ = ("_call", "_ended", "_name", "_tools", "_writer", "size_bytes", "usage")

    def __init__(self, call: Call, *, name: str) -> None:
        """`name` is the upstream's, for errors."""
        self._call = call
        self._name = name
        self._writer: ChunkWriter | None = None
        # Calls of functions so far, of each candidate that has begun.
        self._tools: dict[int, int] = {}
        self._ended: set[int] = set()
        self.size_bytes = 0
        self.usage: Usage | None = None

    @property
    def finished(self) -> bool:
        return bool(self._ended) and self._ended >= self._tools.keys()

    def feed(self, event: Any) -> bytes:
        """The chunks of one event, perhaps none. Raises: UpstreamRejected for a blocked prompt, UpstreamFailed."""
        if not isinstance(event, dict):
            raise self._no_answer(event)
        self.usage = usage_from(event.get("usageMetadata")) or self.usage
        candidates = event.get("candidates")
        if not candidates:
            self._check_blocked(event)
            return b""
        if not isinstance(candidates, list):
            raise self._no_answer(event)
        if self._writer is None:
            self._writer = ChunkWriter(self._call, fingerprint=str(event.get("modelVersion") or "gemini"))
        return b"".join([self._candidate(self._writer, one) for one in candidates if isinstance(one, dict)])

    def end(self, usage: Usage) -> bytes:
        """The usage, where the caller asked for it. Raises: UpstreamFailed for an answer that was cut off."""
        if self._writer is None or not self.finished:
            raise UpstreamFailed(f"The model's server {self._name!r} ended its answer too early")
        return self._writer.usage(usage)

    def _check_blocked(self, event: dict[str, Any]) -> None:
        feedback = event.get("promptFeedback")
        reason = feedback.get("blockReason") if isinstance(feedback, dict) else None
        if reason:
            raise UpstreamRejected(
                f"The model's server refuses this prompt: {str(reason)[:100]}.",
                status=400,
                code="content_filter",
                type=None,
                param="messages",
            )

    def _candidate(self, writer: ChunkWriter, candidate: dict[str, Any]) -> bytes:
        index = candidate.get("index")
        if not isinstance(index, int):
            index = 0
        out = b""
        if index not in self._tools:
            self._tools[index] = 0
            out = writer.role(index)
        content = candidate.get("content")
        parts = content.get("parts") if isinstance(content, dict) else None
        for part in parts if isinstance(parts, list) else ():
            if isinstance(part, dict):
                out += self._part(writer, part, index)
        reason = candidate.get("finishReason")
        return out + self._finish(writer, reason, index) if isinstance(reason, str) else out

    def _part(self, writer: ChunkWriter, part: dict[str, Any], index: int) -> bytes:
        text, call = part.get("text"), part.get("functionCall")
        if isinstance(text, str) and text:
            self.size_bytes += len(text)
            return writer.thought(text, index=index) if part.get("thought") is True else writer.text(text, index=index)
        if not isinstance(call, dict):
            return b""
        tool = self._tools[index]
        self._tools[index] += 1
        id = str(call.get("id") or f"call_{self._call.id[4:]}{index:x}{tool:x}")
        arguments = _encode(call.get("args") or {}).decode()
        self.size_bytes += len(arguments)
        signature = part.get("thoughtSignature")
        extra = {"google": {"thought_signature": signature}} if isinstance(signature, str) else None
        opening = writer.tool_start(tool, id=id, name=str(call.get("name") or ""), index=index, extra_content=extra)
        return opening + writer.tool_arguments(tool, arguments, index=index)

    def _finish(self, writer: ChunkWriter, reason: str, index: int) -> bytes:
        self._ended.add(index)
        if reason in _FILTERED:
            return writer.finish("content_filter", index=index)
        finish = _FINISH.get(reason)
        if finish is None:
            # Such as MALFORMED_FUNCTION_CALL: there is no answer that a caller could use.
            raise UpstreamFailed(f"The model's server {self._name!r} made no answer: {reason[:100]}")
        called = finish == "stop" and self._tools[index]
        return writer.finish("tool_calls" if called else finish, index=index)

    def _no_answer(self, event: Any) -> UpstreamFailed:
        return UpstreamFailed(
            f"The model's server {self._name!r} sent something that is no answer", internal=repr(event)[:200]
        )


def usage_from(body: Any) -> Usage | None:
    """The usage that Gemini reports, or None where there is none. Its answer's tokens leave out those of thoughts."""
    if not isinstance(body, dict):
        return None
    prompt = _count(body, "promptTokenCount") + _count(body, "toolUsePromptTokenCount")
    thoughts = _count(body, "thoughtsTokenCount")
    return Usage(
        input_tokens=prompt,
        output_tokens=_count(body, "candidatesTokenCount") + thoughts,
        cached_tokens=min(_count(body, "cachedContentTokenCount"), prompt),
        reasoning_tokens=thoughts,
    )


def _count(body: dict[str, Any], name: str) -> int:
    value = body.get(name)
    return value if isinstance(value, int) and value > 0 else 0
