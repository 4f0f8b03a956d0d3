"""A server that answers for us over HTTP: connections, headers, time limits, refusals, and the way of its answer.

What differs between dialects is three methods: what is sent, how a whole answer is read, how a stream is.
"""

from __future__ import annotations

import ssl
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Awaitable, Mapping
from typing import NamedTuple

from modelport import __version__
from modelport.backends.protocol import Health, Status
from modelport.backends.transport import HttpPool, Response, Timeouts, header_block
from modelport.backends.upstream.estimate import estimate_input
from modelport.backends.upstream.lane import Lane, Reader
from modelport.backends.upstream.refusals import refusal
from modelport.calls import Call, Delta
from modelport.errors import CallTimeout, ModelportError
from modelport.kit.clock import Clock, SystemClock
from modelport.settings import UpstreamSettings

# What the transport writes itself: a second one could make two servers disagree where a request ends.
_FRAMING = frozenset({"content-length", "transfer-encoding", "host", "connection"})
# An error's text is short; a page that is longer than this is no inference API's.
MAX_REFUSAL_BYTES = 1_000_000
# A number and what surrounds it.
MAX_SHORT_BYTES = 100_000
# Source: W3C Trace Context, section 3.2: version, trace, parent and flags in hex digits, joined by dashes.
_TRACEPARENT_CHARS = 2 + 1 + 32 + 1 + 16 + 1 + 2


class Request(NamedTuple):
    """What is sent for a call; `headers` are lines beside those that every call carries."""

    path: bytes
    body: bytes
    headers: bytes = b""


class UpstreamBackend(ABC):
    """Forwards calls to one server. The caller's key is never sent. Connections are opened as they are needed."""

    def __init__(
        self,
        settings: UpstreamSettings,
        *,
        headers: Mapping[str, str],
        clock: Clock | None = None,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        """`headers` are the dialect's own: credentials, versions. A configured header replaces one of the same name.
        `tls` replaces the machine's own trust. Raises: ValueError for an address or header that can't be used."""
        self._name = settings.name
        self._settings = settings
        self._clock = clock or SystemClock()
        self._headers = _static_headers(settings, headers)
        self._pool = HttpPool(
            settings.name,
            settings.base_url,
            max_connections=settings.max_connections,
            max_body_bytes=settings.max_answer_bytes,
            tls=tls,
        )

    @property
    def kind(self) -> str:
        return self._settings.kind

    @property
    def pool(self) -> HttpPool:
        """Its connections, for metrics."""
        return self._pool

    async def start(self) -> None:  # noqa: B027 (nothing to do is what every upstream does)
        """Nothing to load: an upstream that is down now may be up when the first call comes."""

    async def close(self) -> None:
        await self._pool.aclose()

    def health(self) -> Health:
        return Health(Status.READY)

    async def count_input(self, call: Call, *, model: str) -> int:
        """An estimate; see `modelport.backends.upstream.estimate`."""
        call.estimate = estimate = estimate_input(call)
        return estimate

    @abstractmethod
    def _request(self, call: Call, model: str, max_output_tokens: int | None) -> Request:
        """What is sent. Raises: BadRequest for what the dialect can't say."""

    @abstractmethod
    def _whole(self, call: Call, body: bytes) -> Delta:
        """A complete answer as one delta. Raises: UpstreamFailed, UpstreamRejected."""

    @abstractmethod
    def _reader(self, call: Call, max_output_tokens: int | None) -> Reader:
        """What reads the stream; `max_output_tokens` as in `stream`."""

    async def stream(self, call: Call, *, model: str, max_output_tokens: int | None) -> AsyncGenerator[Delta]:
        """See `Backend.stream`. The connection is closed with the generator unless the answer has ended."""
        response = await self._send(call, self._request(call, model, max_output_tokens))
        try:
            if not 200 <= response.status < 300:
                raise await self._refused(response)
            if not call.stream:
                yield self._whole(call, await response.read())
                return
            response.awaited = True
            events = self._reader(call, max_output_tokens)
            estimate = estimate_input(call) if call.estimate is None else call.estimate
            over = False
            while not over:
                before = events.pieces
                if call.relay is not None and response.idle:
                    lane = Lane(events, call.relay, input_tokens=estimate)
                    await response.flow(lane.take)
                    data = raw = lane.left
                    if not (data or events.done or events.error):
                        # The body has ended; its last bytes are still to be taken.
                        continue
                else:
                    data = await response.receive()
                    raw = events.feed(data) if data else b""
                if response.awaited and events.pieces:
                    response.awaited = False
                if not data or events.done or events.error is not None:
                    over = True
                    raw += events.end(input_tokens=estimate)
                if raw or over:
                    usage = events.count(estimate)
                    yield Delta(raw, usage=usage, timed=events.pieces > before, original=events.original)
            if events.error is not None:
                raise events.error
            response.release()
        finally:
            response.close()

    def _send(self, call: Call, request: Request) -> Awaitable[Response]:
        """The head of the answer, whatever it says. Whoever has it must end with `close` or `release`."""
        return self._pool.request(
            b"POST",
            request.path,
            headers=self._headers + request.headers + _call_headers(call),
            body=request.body,
            timeouts=self._timeouts(call),
        )

    async def _ask(self, call: Call, request: Request) -> bytes:
        """The body of a short answer that is no model's. Raises: what `stream` raises before its first delta."""
        response = await self._send(call, request)
        try:
            if not 200 <= response.status < 300:
                raise await self._refused(response)
            return await response.read(limit_bytes=MAX_SHORT_BYTES)
        finally:
            response.close()

    def _meaning(self, status: int, body: bytes, *, retry_after: bytes | None, now_us: int) -> ModelportError:
        """The error of ours for an answer with a status other than 2xx."""
        return refusal(self._name, status, body, retry_after=retry_after, now_us=now_us)

    async def _refused(self, response: Response) -> ModelportError:
        return self._meaning(
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


def _static_headers(settings: UpstreamSettings, own: Mapping[str, str]) -> bytes:
    headers = {"user-agent": f"modelport/{__version__}", "accept-encoding": "identity", **own}
    headers |= {name.lower(): value for name, value in settings.headers.items()}
    refused = _FRAMING.intersection(headers)
    if refused:
        raise ValueError(f"upstream {settings.name!r} may not set the header {min(refused)!r}")
    headers["content-type"] = "application/json"
    return header_block(headers.items())


def _call_headers(call: Call) -> bytes:
    text = call.traceparent
    # The platform makes its own; what can't stand in one line of a header is left out.
    if text is not None and len(text) == _TRACEPARENT_CHARS and text.isascii() and text.isprintable():
        return f"x-request-id: {call.id}\r\ntraceparent: {text}\r\n".encode()
    return f"x-request-id: {call.id}\r\n".encode()
