"""One OpenAI-compatible server with any number of models."""

from __future__ import annotations

import ssl
from typing import Any

import msgspec

from modelport.backends.openai.stream import EventStream
from modelport.backends.openai.whole import read_answer
from modelport.backends.upstream import Request, UpstreamBackend
from modelport.calls import Call, Delta, Operation
from modelport.errors import BadRequest
from modelport.kit.clock import Clock
from modelport.settings import UpstreamSettings

_PATHS = {
    Operation.CHAT: b"/chat/completions",
    Operation.COMPLETION: b"/completions",
    Operation.EMBEDDING: b"/embeddings",
}
_WITH_USAGE = msgspec.Raw(b'{"include_usage":true}')
_encode = msgspec.json.Encoder().encode
_decode_options = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode


class OpenAIBackend(UpstreamBackend):
    """Passes bodies and answers through, byte for byte but for the model's name."""

    def __init__(
        self,
        settings: UpstreamSettings,
        *,
        api_key: str,
        clock: Clock | None = None,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        headers = {"authorization": f"Bearer {api_key}"} if api_key else {}
        super().__init__(settings, headers=headers, clock=clock, tls=tls)

    def _request(self, call: Call, model: str, max_output_tokens: int | None) -> Request:
        path = _PATHS.get(call.operation)
        if path is None:
            raise BadRequest(f"The model {call.model!r} can't {call.operation.value}")
        return Request(path, _body(call, model, max_output_tokens))

    def _whole(self, call: Call, body: bytes) -> Delta:
        return read_answer(self._name, call, body)

    def _reader(self, call: Call, max_output_tokens: int | None) -> EventStream:
        return EventStream(self._name, public_model=call.model, keep_usage=call.request.include_usage)


def _body(call: Call, model: str, max_output_tokens: int | None) -> bytes:
    """The caller's body, members that we don't know included, with what has to differ."""
    fields: dict[str, Any] = {**call.fields, "model": model}
    if call.stream:
        fields["stream_options"] = _with_usage(call.fields.get("stream_options"))
    generates = call.operation is not Operation.EMBEDDING
    if generates and max_output_tokens is not None and call.request.output_bound is None:
        fields["max_tokens"] = max_output_tokens
    return _encode(fields)


def _with_usage(options: msgspec.Raw | None) -> Any:
    if options is None or bytes(options) == b"null":
        return _WITH_USAGE
    return {**_decode_options(options), "include_usage": True}
