"""One OpenAI-compatible server with any number of models."""

from __future__ import annotations

import ssl
from collections.abc import AsyncGenerator
from typing import Any

import msgspec

from modelport.backends.openai.stream import EventStream
from modelport.backends.openai.whole import read_answer
from modelport.backends.protocol import Health, Status
from modelport.backends.transport import HttpPool
from modelport.backends.upstream import UpstreamClient
from modelport.backends.upstream.estimate import estimate_input
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


class OpenAIBackend:
    """Forwards calls to one upstream and passes its answers through, byte for byte but for the model's name."""

    def __init__(
        self,
        settings: UpstreamSettings,
        *,
        api_key: str,
        clock: Clock | None = None,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        """See `UpstreamClient`."""
        self._name = settings.name
        headers = {"authorization": f"Bearer {api_key}"} if api_key else {}
        self._client = UpstreamClient(settings, headers=headers, clock=clock, tls=tls)

    @property
    def kind(self) -> str:
        return "openai"

    @property
    def pool(self) -> HttpPool:
        """Its connections, for metrics."""
        return self._client.pool

    async def start(self) -> None:
        """Nothing to load: an upstream that is down now may be up when the first call comes."""

    async def close(self) -> None:
        await self._client.pool.aclose()

    def health(self) -> Health:
        return Health(Status.READY)

    async def count_input(self, call: Call, *, model: str) -> int:
        """An estimate; see `modelport.backends.upstream.estimate`."""
        return estimate_input(call)

    async def stream(self, call: Call, *, model: str, max_output_tokens: int | None) -> AsyncGenerator[Delta]:
        """See `Backend.stream`. The connection is closed with the generator unless the answer has ended."""
        path = _PATHS.get(call.operation)
        if path is None:
            raise BadRequest(f"The model {call.model!r} can't {call.operation.value}")
        response = await self._client.post(call, path, _body(call, model, max_output_tokens))
        try:
            if not call.stream:
                yield read_answer(self._name, call, await response.read())
                return
            events = EventStream(self._name, public_model=call.model, keep_usage=call.request.include_usage)
            estimate = estimate_input(call)
            over = False
            while not over:
                data = await response.receive()
                before = events.pieces
                raw = events.feed(data) if data else b""
                if not data or events.done or events.error is not None:
                    over = True
                    raw += events.end(input_tokens=estimate)
                if raw or over:
                    yield Delta(raw, usage=events.count(estimate), timed=events.pieces > before)
            if events.error is not None:
                raise events.error
            response.release()
        finally:
            response.close()


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
