"""The Gemini API with any number of models: chats by generateContent, embeddings by batchEmbedContents."""

from __future__ import annotations

import ssl
from typing import Annotated, Any
from urllib.parse import quote

import msgspec

from modelport.backends.gemini.embeddings import embeddings_body, read_embeddings
from modelport.backends.gemini.refusals import gemini_refusal
from modelport.backends.gemini.stream import ContentStream, read_content
from modelport.backends.upstream import Request, UpstreamBackend
from modelport.calls import Call, Delta, Operation
from modelport.dialect.gemini.to_contents import contents_body
from modelport.errors import BadRequest, ModelportError, UpstreamFailed
from modelport.kit.clock import Clock
from modelport.settings import UpstreamSettings

_encode = msgspec.json.Encoder().encode


class _Count(msgspec.Struct):
    totalTokens: Annotated[int, msgspec.Meta(ge=0)]


_decode_count = msgspec.json.Decoder(_Count).decode


class GeminiBackend(UpstreamBackend):
    """Translates calls into Gemini's dialect and its answers back into a chat's chunks."""

    def __init__(
        self,
        settings: UpstreamSettings,
        *,
        api_key: str,
        clock: Clock | None = None,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        headers = {"x-goog-api-key": api_key} if api_key else {}
        super().__init__(settings, headers=headers, clock=clock, tls=tls)

    async def count_exactly(self, call: Call, *, model: str) -> int:
        """Gemini's own count, for a caller who asks for nothing else. `count_input` can't wait for it.

        Raises: what `stream` raises before its first delta.
        """
        content = contents_body(call.request, call.fields, model=model, max_output_tokens=None)
        body = _encode({"generateContentRequest": {"model": f"models/{model}", **content}})
        counted = await self._ask(call, Request(_path(model, b"countTokens"), body))
        try:
            return _decode_count(counted).totalTokens
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise UpstreamFailed(f"The model's server {self._name!r} counts no tokens", internal=str(error)) from None

    def _request(self, call: Call, model: str, max_output_tokens: int | None) -> Request:
        if call.operation is Operation.CHAT:
            verb = b"streamGenerateContent?alt=sse" if call.stream else b"generateContent"
            body: Any = contents_body(call.request, call.fields, model=model, max_output_tokens=max_output_tokens)
        elif call.operation is Operation.EMBEDDING:
            verb, body = b"batchEmbedContents", embeddings_body(call.request, model=model)
        else:
            raise BadRequest(f"The model {call.model!r} can't {call.operation.value}")
        return Request(_path(model, verb), _encode(body))

    def _whole(self, call: Call, body: bytes) -> Delta:
        read = read_embeddings if call.operation is Operation.EMBEDDING else read_content
        return read(self._name, call, body)

    def _reader(self, call: Call, max_output_tokens: int | None) -> ContentStream:
        return ContentStream(self._name, call)

    def _meaning(self, status: int, body: bytes, *, retry_after: bytes | None, now_us: int) -> ModelportError:
        return gemini_refusal(self._name, status, body, retry_after=retry_after, now_us=now_us)


def _path(model: str, verb: bytes) -> bytes:
    return b"/models/%b:%b" % (quote(model, safe="").encode(), verb)
