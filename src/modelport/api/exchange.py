"""One request and its answer on the hot routes: headers looked up once, one way to answer, nothing else in between."""

from __future__ import annotations

import asyncio
import gzip
import re
from collections.abc import Callable
from http import HTTPStatus
from typing import Any

from modelport.api.deprecation_headers import deprecation_headers
from modelport.api.inflate import INFLATED, inflated
from modelport.api.limit_headers import Style, limit_headers
from modelport.api.platform import Platform
from modelport.api.problems import stream_event
from modelport.api.wire import AnswerRecorder, AnswerWriter, Headers, Wire
from modelport.catalog.deprecation import Deprecation
from modelport.errors import (
    BadRequest,
    BodyTooLarge,
    CallCancelled,
    ModelportError,
    Unauthenticated,
    UnsupportedMedia,
)
from modelport.inference.interrupt import Interrupt
from modelport.observe.tracing import Trace
from modelport.state.protocol import Level

_JSON = (b"content-type", b"application/json")
# What would be believed of one and not of the other, by us or by a proxy before us, when it came twice.
_SINGLE = (
    b"host",
    b"authorization",
    b"x-api-key",
    b"content-type",
    b"content-length",
    b"content-encoding",
    b"transfer-encoding",
    b"idempotency-key",
)
# Above this size, compressing takes long enough to be felt by other calls on the event loop.
_GZIP_IN_THREAD_BYTES = 64_000
_NO_WEIGHT = re.compile(rb"q=0(\.0{0,3})?")


class Exchange:
    """Concurrency: used by the one task that serves the request."""

    __slots__ = (
        "_body",
        "_headers",
        "_recorder",
        "deprecations",
        "extra",
        "interrupt",
        "last_words",
        "levels",
        "out",
        "path",
        "platform",
        "request_id",
        "scope",
        "started",
        "started_s",
        "started_us",
        "status",
        "streaming",
        "style",
        "trace",
        "traceparent",
        "wire",
    )

    def __init__(self, wire: Wire, *, platform: Platform, request_id: str) -> None:
        self.wire = wire
        # What the answer is written to: the wire, or a recorder before it.
        self.out: AnswerWriter = wire
        self._recorder: AnswerRecorder | None = None
        self._body: bytes | None = None
        self.scope = scope = wire.scope
        self.platform = platform
        self.request_id = request_id
        self.path: str = scope["path"]
        self._headers: dict[bytes, bytes] = dict(scope["headers"])
        self.started_s = platform.clock.monotonic_s()
        self.started_us = platform.clock.now_us()
        self.trace = Trace.from_headers(
            self._headers.get(b"traceparent"), self._headers.get(b"tracestate"), own=request_id[4:]
        )
        self.traceparent = self.trace.header()
        self.started = False
        self.status = 0
        # A stream has begun and has not had its last piece.
        self.streaming = False
        self.style: Style = "x"
        # How the door's dialect writes the failure of a stream that has begun.
        self.last_words: Callable[[ModelportError], bytes] = stream_event
        self.levels: list[Level] = []
        self.extra: Headers = []
        # Of the route and of the model that is asked.
        self.deprecations: tuple[Deprecation, ...] = ()
        self.interrupt: Interrupt | None = None

    def header(self, name: bytes) -> str | None:
        """The value of a request header (its name in lower case); the last one where it is repeated."""
        value = self._headers.get(name)
        return None if value is None else value.decode("latin-1")

    def check_headers(self) -> None:
        """Raises: BadRequest for headers that could be understood in two ways (RFC 9110 5.3, RFC 9112 3.2 and 6.1).

        The answer is then the connection's last: where the next request begins is in doubt as well.
        """
        doubt = self._doubt()
        if doubt:
            self.wire.make_last()
            raise BadRequest(doubt)

    def _doubt(self) -> str:
        if len(self._headers) != len(self.scope["headers"]):
            names = [name for name, _ in self.scope["headers"]]
            for name in _SINGLE:
                if names.count(name) > 1:
                    return f"The header {name.decode()!r} was sent more than once."
        if b"host" not in self._headers and self.scope["http_version"] == "1.1":
            return "The header 'host' is missing."
        if self._headers.get(b"transfer-encoding", b"chunked").strip().lower() != b"chunked":
            return "The only transfer-encoding that is read here is 'chunked'."
        return ""

    def speak_anthropic(self) -> None:
        """Answer with the headers that Anthropic's SDKs read. Idempotent."""
        if self.style != "anthropic":
            self.style = "anthropic"
            self.extra = [*self.extra, (b"request-id", self.request_id.encode())]

    @property
    def address(self) -> str:
        client = self.scope.get("client")
        return client[0] if client else ""

    def secret(self) -> str:
        """The API key that the client sent. Raises: Unauthenticated when there is none."""
        return read_secret(self.header(b"authorization"), self.header(b"x-api-key"))

    def require_json(self) -> None:
        """Raises: UnsupportedMedia unless the body is declared as JSON (or not at all)."""
        declared = self._headers.get(b"content-type")
        if declared is not None and b"json" not in declared.lower():
            raise UnsupportedMedia("Send the body as JSON, with the header 'content-type: application/json'.")

    async def body(self, *, most_bytes: int | None = None, inflate: bool = False) -> bytes:
        """The whole body, of `most_bytes` or the configured most; the same whenever it is asked for.

        A compressed one is taken apart where the route's clients send such (`inflate`), up to the same size.
        Raises: BodyTooLarge as soon as it is known, BadRequest when it does not arrive, UnsupportedMedia.
        """
        if self._body is not None:
            return self._body
        most = self.platform.settings.server.max_body_bytes if most_bytes is None else most_bytes
        encoding = self._headers.get(b"content-encoding", b"identity").strip().lower()
        packed = inflate and encoding in INFLATED
        if encoding != b"identity" and encoding and not packed:
            self.extra = [*self.extra, (b"accept-encoding", b"gzip, deflate" if inflate else b"identity")]
            raise UnsupportedMedia("Compressed bodies are not read here; send it without a content-encoding.")
        body = await self._arrived(most)
        self._body = await inflated(body, most_bytes=most) if packed else body
        return self._body

    async def _arrived(self, most: int) -> bytes:
        """The body as it was sent."""
        declared = self._headers.get(b"content-length")
        if declared is not None and declared.isdigit() and int(declared) > most:
            raise self._too_large(most)
        body = self.wire.body_at_hand()
        if body is not None:
            if len(body) > most:
                raise self._too_large(most)
            return body
        timeout_s = self.platform.settings.server.body_timeout_s
        try:
            async with asyncio.timeout(timeout_s):
                return await self._read(most)
        except TimeoutError:
            error = BadRequest(f"The body did not arrive within {timeout_s:g} s.")
            error.status = 408
            raise error from None

    async def _read(self, most: int) -> bytes:
        pieces = bytearray()
        while (message := await self.wire.receive())["type"] == "http.request":
            pieces += message["body"]
            if len(pieces) > most:
                raise self._too_large(most)
            if not message["more_body"]:
                return bytes(pieces)
        raise CallCancelled()

    def _too_large(self, most: int) -> BodyTooLarge:
        return BodyTooLarge(f"The body is larger than {most:,} bytes.")

    def receive_once(self, body: bytes) -> Any:
        """An ASGI receive that hands out `body`, for a parser that wants to read the request itself."""
        pending = True

        async def receive() -> Any:
            nonlocal pending
            if pending:
                pending = False
                return {"type": "http.request", "body": body, "more_body": False}
            # All that can come now is the hang-up.
            while (message := await self.wire.receive())["type"] == "http.request":
                pass
            return message

        return receive

    def guard(self, interrupt: Interrupt) -> None:
        """Stop the call when the client hangs up or its time is over. Ended by `close`."""
        self.interrupt = interrupt
        interrupt.arm()
        self.wire.watch(interrupt.hang_up)

    def close(self) -> None:
        """The request is over: nobody is watched any more, nothing is left to stop."""
        if self._recorder is not None:
            self._recorder.close()
        if self.interrupt is not None:
            self.interrupt.disarm()
            self.wire.on_gone = None

    def record(self, recorder: AnswerRecorder) -> None:
        """From now on, have the answer go through this recorder, which is closed with the exchange."""
        self.out = self._recorder = recorder

    async def give(self, status: int, headers: Headers, body: bytes, *, streamed: bool = False) -> None:
        """An answer whose headers are complete, but for its length; `streamed`: one that tells none."""
        self.started, self.status = True, status
        if not (streamed or status == HTTPStatus.NO_CONTENT or any(name == b"content-length" for name, _ in headers)):
            headers.append((b"content-length", b"%d" % len(body)))
        if streamed:
            await self.out.begin(status, headers)
            await self.out.end(body)
        else:
            await self.out.whole(status, headers, body)

    async def respond(
        self, status: int, body: bytes, *, headers: Headers | None = None, content_type: tuple[bytes, bytes] = _JSON
    ) -> None:
        """The whole answer at once."""
        if status == HTTPStatus.NO_CONTENT:
            self.started, self.status = True, status
            await self.out.whole(status, self._common(headers), b"")
            return
        fields = [content_type, *self._common(headers)]
        smallest = self.platform.settings.server.gzip_min_bytes
        if len(body) >= smallest and accepts_gzip(self._headers.get(b"accept-encoding", b"")):
            body = await _compress(body)
            fields.append((b"content-encoding", b"gzip"))
            fields.append((b"vary", b"accept-encoding"))
        fields.append((b"content-length", b"%d" % len(body)))
        self.started, self.status = True, status
        await self.out.whole(status, fields, body)

    async def start_stream(self, headers: Headers) -> None:
        """Status and headers of a stream of server-sent events."""
        fields = [
            (b"content-type", b"text/event-stream; charset=utf-8"),
            (b"cache-control", b"no-cache"),
            (b"x-accel-buffering", b"no"),
            *self._common(headers),
        ]
        self.started, self.status, self.streaming = True, 200, True
        await self.out.begin(200, fields)

    async def send(self, data: bytes) -> None:
        """A piece of the stream; waits while the client is slow."""
        await self.out.piece(data)

    async def finish(self, data: bytes) -> None:
        """The last piece of the stream."""
        self.streaming = False
        await self.out.end(data)

    def elapsed_s(self) -> float:
        return self.platform.clock.monotonic_s() - self.started_s

    def _common(self, headers: Headers | None) -> Headers:
        fields: Headers = [
            (b"x-request-id", self.request_id.encode()),
            (b"traceparent", self.traceparent),
            *self.extra,
        ]
        if headers:
            fields += headers
        if self.deprecations:
            fields += deprecation_headers(self.deprecations, self.platform.settings.server.public_url)
        if self.levels:
            fields += limit_headers(self.levels, style=self.style, now_us=self.started_us)
        return fields


def read_secret(authorization: str | None, api_key: str | None) -> str:
    """The key out of `Authorization: Bearer` or `X-API-Key`.

    Raises: Unauthenticated when there is none, or two that differ.
    """
    bearer: str | None = None
    if authorization is not None:
        scheme, _, token = authorization.partition(" ")
        if scheme.lower() != "bearer" or not token.strip():
            raise Unauthenticated("The Authorization header must be 'Bearer ' followed by an API key.")
        bearer = token.strip()
    if bearer is not None and api_key is not None and bearer != api_key:
        raise Unauthenticated("Authorization and X-API-Key carry two different keys; send one.")
    secret = bearer or api_key
    if not secret:
        raise Unauthenticated("No API key was sent; send it as 'Authorization: Bearer KEY' or 'X-API-Key: KEY'.")
    return secret


def accepts_gzip(accepted: bytes) -> bool:
    """Whether an Accept-Encoding asks for gzip and does not refuse it (RFC 9110 section 12.5.3)."""
    lowered = accepted.lower()
    if b"gzip" not in lowered:
        return False
    for part in lowered.split(b","):
        coding, _, weight = part.partition(b";")
        if coding.strip() == b"gzip":
            return not _NO_WEIGHT.fullmatch(weight.strip())
    return False


async def _compress(body: bytes) -> bytes:
    if len(body) < _GZIP_IN_THREAD_BYTES:
        return gzip.compress(body, compresslevel=1, mtime=0)
    return await asyncio.to_thread(gzip.compress, body, 1, mtime=0)
