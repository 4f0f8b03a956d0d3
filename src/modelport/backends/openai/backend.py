"""One OpenAI-compatible server with any number of models."""

from __future__ import annotations

import re
import ssl
from collections.abc import AsyncGenerator
from typing import Any

import msgspec

from modelport import __version__
from modelport.backends.openai.estimate import estimate_input
from modelport.backends.openai.refusals import refusal
from modelport.backends.openai.stream import EventStream
from modelport.backends.openai.whole import read_answer
from modelport.backends.protocol import Health, Status
from modelport.backends.transport import HttpPool, Response, Timeouts, header_block
from modelport.calls import Call, Delta, Operation
from modelport.errors import BadRequest, CallTimeout, ModelportError
from modelport.kit.clock import Clock, SystemClock
from modelport.settings import UpstreamSettings

_PATHS = {
    Operation.CHAT: b"/chat/completions",
    Operation.COMPLETION: b"/completions",
    Operation.EMBEDDING: b"/embeddings",
}
_WITH_USAGE = msgspec.Raw(b'{"include_usage":true}')
# What the transport writes itself: a second one could make two servers disagree where a request ends.
_FRAMING = frozenset({"content-length", "transfer-encoding", "host", "connection"})
# An error's text is short; a page that is longer than this is no inference API's.
MAX_REFUSAL_BYTES = 1_000_000
# Source: W3C Trace Context, section 3.2.
_TRACEPARENT = re.compile(r"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}")
_encode = msgspec.json.Encoder().encode
_decode_options = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode


class OpenAIBackend:
    """Forwards calls to one upstream and passes its answers through, byte for byte but for the model's name.

    The caller's key is never sent; the upstream's own is. Its connections are opened as they are needed.
    """

    def __init__(
        self,
        settings: UpstreamSettings,
        *,
        api_key: str,
        clock: Clock | None = None,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        """`tls` replaces the machine's own trust. Raises: ValueError for an address or header that can't be used."""
        self._name = settings.name
        self._settings = settings
        self._clock = clock or SystemClock()
        self._headers = _static_headers(settings, api_key)
        self._pool = HttpPool(
            settings.name,
            settings.base_url,
            max_connections=settings.max_connections,
            max_body_bytes=settings.max_answer_bytes,
            tls=tls,
        )

    @property
    def kind(self) -> str:
        return "openai"

    @property
    def pool(self) -> HttpPool:
        """Its connections, for metrics."""
        return self._pool

    async def start(self) -> None:
        """Nothing to load: an upstream that is down now may be up when the first call comes."""

    async def close(self) -> None:
        await self._pool.aclose()

    def health(self) -> Health:
        return Health(Status.READY)

    async def count_input(self, call: Call, *, model: str) -> int:
        """An estimate; see `modelport.backends.openai.estimate`."""
        return estimate_input(call)

    async def stream(self, call: Call, *, model: str, max_output_tokens: int | None) -> AsyncGenerator[Delta]:
        """See `Backend.stream`. The connection is closed with the generator unless the answer has ended."""
        path = _PATHS.get(call.operation)
        if path is None:
            raise BadRequest(f"The model {call.model!r} can't {call.operation.value}")
        response = await self._pool.request(
            b"POST",
            path,
            headers=self._headers + _call_headers(call),
            body=_body(call, model, max_output_tokens),
            timeouts=self._timeouts(call),
        )
        try:
            if not 200 <= response.status < 300:
                raise await self._refused(response)
            if not call.stream:
                yield read_answer(self._name, call, await response.read())
                return
            response.awaited = True
            events = EventStream(self._name, public_model=call.model, keep_usage=call.request.include_usage)
            estimate = estimate_input(call)
            over = False
            while not over:
                data = await response.receive()
                before = events.pieces
                raw = events.feed(data) if data else b""
                if response.awaited and events.pieces:
                    response.awaited = False
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

    async def _refused(self, response: Response) -> ModelportError:
        return refusal(
            self._name,
            response.status,
            await response.read(limit_bytes=MAX_REFUSAL_BYTES),
            retry_after=response.header(b"retry-after"),
            now_us=self._clock.now_us(),
        )

    def _timeouts(self, call: Call) -> Timeouts:
        """The row's, or those of the call's route. An answer that does not stream begins when the last token is made,
        so nothing but its deadline bounds it there."""
        left_s = call.deadline_s - self._clock.monotonic_s()
        if left_s <= 0:
            raise CallTimeout()
        settings, patience = self._settings, call.patience
        if patience is None:
            first_s = settings.first_token_timeout_s if call.stream else left_s
            return Timeouts(settings.connect_timeout_s, first_s, settings.between_tokens_timeout_s, left_s)
        streamed_s = patience.first_token_s or settings.first_token_timeout_s
        return Timeouts(
            patience.connect_s or settings.connect_timeout_s,
            streamed_s if call.stream else patience.answer_s or left_s,
            patience.between_tokens_s or settings.between_tokens_timeout_s,
            left_s if call.stream or patience.answer_s is None else min(left_s, patience.answer_s),
            patience.queue_s,
        )


def _static_headers(settings: UpstreamSettings, api_key: str) -> bytes:
    """What every call carries. A configured header replaces ours of the same name."""
    headers = {"user-agent": f"modelport/{__version__}", "accept-encoding": "identity"}
    if api_key:
        headers["authorization"] = f"Bearer {api_key}"
    headers |= {name.lower(): value for name, value in settings.headers.items()}
    refused = _FRAMING.intersection(headers)
    if refused:
        raise ValueError(f"upstream {settings.name!r} may not set the header {min(refused)!r}")
    headers["content-type"] = "application/json"
    return header_block(headers.items())


def _call_headers(call: Call) -> bytes:
    traceparent = call.traceparent
    if traceparent is None or not _TRACEPARENT.fullmatch(traceparent):
        return b"x-request-id: %b\r\n" % call.id.encode()
    return b"x-request-id: %b\r\ntraceparent: %b\r\n" % (call.id.encode(), traceparent.encode())


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
