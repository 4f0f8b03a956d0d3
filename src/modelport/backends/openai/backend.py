"""One OpenAI-compatible server, or one resource of Azure OpenAI, with any number of models."""

from __future__ import annotations

import ssl
from typing import Any
from urllib.parse import quote

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
        super().__init__(settings, headers=_credentials(settings, api_key), clock=clock, tls=tls)
        # Azure's dated API has an address for each deployment; its newer one is OpenAI's but for the key's header.
        version = settings.api_version if settings.kind == "azure-openai" else ""
        self._dated = f"?api-version={version}".encode() if version else b""

    def _request(self, call: Call, model: str, max_output_tokens: int | None) -> Request:
        path = _PATHS.get(call.operation)
        if path is None:
            raise BadRequest(f"The model {call.model!r} can't {call.operation.value}")
        if self._dated:
            path = b"/openai/deployments/%b%b%b" % (quote(model, safe="").encode(), path, self._dated)
        return Request(path, _body(call, model, max_output_tokens))

    def _whole(self, call: Call, body: bytes) -> Delta:
        return read_answer(self._name, call, body)

    def _reader(self, call: Call, max_output_tokens: int | None) -> EventStream:
        return EventStream(self._name, public_model=call.model, keep_usage=call.request.include_usage)


def _credentials(settings: UpstreamSettings, api_key: str) -> dict[str, str]:
    if not api_key:
        return {}
    return {"api-key": api_key} if settings.kind == "azure-openai" else {"authorization": f"Bearer {api_key}"}


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
