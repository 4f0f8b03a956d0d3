"""One server that speaks Anthropic's Messages API, with any number of models."""

from __future__ import annotations

import ssl
from typing import Annotated, Any

import msgspec

from modelport.backends.anthropic.stream import MessageStream
from modelport.backends.anthropic.whole import read_original, read_translated
from modelport.backends.transport import header_block
from modelport.backends.upstream import Request, UpstreamBackend
from modelport.calls import Call, Delta, Operation, Original
from modelport.dialect.anthropic.shapes import CLASSIC_VERSION, DIALECT
from modelport.dialect.anthropic.to_chunks import ChunkTranslator
from modelport.dialect.anthropic.to_messages import to_messages
from modelport.dialect.openai import ChunkWriter
from modelport.errors import BadRequest, UpstreamFailed
from modelport.kit.clock import Clock
from modelport.settings import UpstreamSettings

_PATH = b"/messages"
_COUNT_PATH = b"/messages/count_tokens"
# The members of a message that are counted; the route refuses the others.
_COUNTED = frozenset({"model", "messages", "system", "tools", "tool_choice", "thinking", "output_config"})
_VERSION = "anthropic-version"
FINGERPRINT = "fp_anthropic"
_encode = msgspec.json.Encoder().encode


class _Count(msgspec.Struct):
    input_tokens: Annotated[int, msgspec.Meta(ge=0)]


_decode_count = msgspec.json.Decoder(_Count).decode


class AnthropicBackend(UpstreamBackend):
    """Translates chats; what came in through the same dialect goes out as it came, and so does its answer."""

    def __init__(
        self,
        settings: UpstreamSettings,
        *,
        api_key: str,
        default_output_tokens: int,
        clock: Clock | None = None,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        """`default_output_tokens` bounds answers for which nobody set a bound: this dialect demands one."""
        headers = {"x-api-key": api_key} if api_key else {}
        super().__init__(settings, headers=headers, clock=clock, tls=tls)
        self._default_output_tokens = default_output_tokens
        # What the operator configured for every call is not the caller's to choose.
        self._pinned = frozenset(name.lower() for name in settings.headers)

    async def count_exactly(self, call: Call, *, model: str) -> int:
        """The server's own count, for a caller who asks for nothing else. `count_input` can't wait for it.

        Raises: what `stream` raises before its first delta.
        """
        original = _original(call)
        if original is None:
            body: dict[str, Any] = to_messages(call.request, call.fields, model=model, max_tokens=1)
            body = {name: value for name, value in body.items() if name in _COUNTED}
        else:
            body = {**original.fields, "model": model}
        counted = await self._ask(call, Request(_COUNT_PATH, _encode(body), self._dialect_headers(original)))
        try:
            return _decode_count(counted).input_tokens
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise UpstreamFailed(f"The model's server {self._name!r} counts no tokens", internal=str(error)) from None

    def _request(self, call: Call, model: str, max_output_tokens: int | None) -> Request:
        if call.operation is not Operation.CHAT:
            raise BadRequest(f"The model {call.model!r} can't {call.operation.value}")
        original = _original(call)
        bound = self._bound(call, max_output_tokens)
        if original is None:
            body: dict[str, Any] = to_messages(call.request, call.fields, model=model, max_tokens=bound)
        else:
            body = {**original.fields, "model": model, "max_tokens": bound}
        return Request(_PATH, _encode(body), self._dialect_headers(original))

    def _whole(self, call: Call, body: bytes) -> Delta:
        if _original(call) is not None:
            return read_original(self._name, call, body)
        return read_translated(self._name, body, ChunkWriter(call, fingerprint=FINGERPRINT))

    def _reader(self, call: Call, max_output_tokens: int | None) -> MessageStream:
        bound = self._bound(call, max_output_tokens)
        translated = _original(call) is None
        translator = ChunkTranslator(ChunkWriter(call, fingerprint=FINGERPRINT)) if translated else None
        return MessageStream(self._name, public_model=call.model, translator=translator, most_tokens=bound)

    def _bound(self, call: Call, max_output_tokens: int | None) -> int:
        most: int = call.request.output_bound or max_output_tokens or self._default_output_tokens
        return most

    def _dialect_headers(self, original: Original | None) -> bytes:
        """The version that the body is written in, and what else of the dialect's own headers the caller sent."""
        headers = {_VERSION: CLASSIC_VERSION, **(original.headers if original is not None else {})}
        try:
            return header_block((name, value) for name, value in headers.items() if name not in self._pinned)
        except ValueError:
            raise BadRequest("A header of Anthropic's has characters that no header has.") from None


def _original(call: Call) -> Original | None:
    """The request as it came, where it came in this dialect and its answer is for nobody else."""
    original = call.original
    if original is None or original.dialect != DIALECT or original.shared:
        return None
    return original
