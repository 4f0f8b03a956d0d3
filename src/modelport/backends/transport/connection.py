"""One HTTP/1.1 connection as an asyncio Protocol: one request at a time, answers parsed by httptools.

Source: RFC 9112 (HTTP/1.1 message syntax). What the parser (llhttp, strict) refuses by itself: a Content-Length
beside a Transfer-Encoding, two lengths, whatever does not begin with a status line.
"""

from __future__ import annotations

import asyncio
import math
import socket
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import httptools

from modelport.backends.transport.response import Response
from modelport.errors import CallTimeout, ModelportError, UpstreamFailed
from modelport.kit.gathering import Gathering, gathering_of
from modelport.kit.outbox import outbox_of

# Bytes that may arrive without a byte of body among them: headers, interim answers, chunk extensions, trailers.
# nginx allows 8 kB and Node 16 kB for a head; this leaves room for large cookies and stops an endless one.
MAX_HEAD_BYTES = 65_536
# A consumer that lags this far behind stops the socket from being read until it has caught up.
HIGH_WATER_BYTES = 65_536
# How long a released connection may take to end its body, and how much of it is read.
DRAIN_S = 1.0
DRAIN_BYTES = 65_536


class Timeouts(NamedTuple):
    """Seconds. `first_byte_s` runs from the request to the answer's head (and on, while `Response.awaited` says so),
    `between_bytes_s` from one read to the next, `total_s` over everything; `queue_s` is for a free connection where
    all are taken, None as `connect_s`."""

    connect_s: float
    first_byte_s: float
    between_bytes_s: float
    total_s: float
    queue_s: float | None = None


@dataclass(frozen=True, slots=True)
class Owner:
    """What a connection tells its pool."""

    name: str
    on_idle: Callable[[Connection], None]
    on_closed: Callable[[Connection], None]
    idle_s: float
    max_body_bytes: int


class Connection(asyncio.Protocol):
    """Belongs to one request at a time; between two it lies in the pool."""

    __slots__ = (
        "_armed_s",
        "_draining",
        "_due_head_s",
        "_due_s",
        "_ended",
        "_gathering",
        "_head",
        "_head_only",
        "_heard_s",
        "_interim",
        "_keep",
        "_loop",
        "_outbox",
        "_owner",
        "_parser",
        "_paused",
        "_timeouts",
        "_timer",
        "_transport",
        "_unproductive_bytes",
        "heard",
        "lost",
        "response",
        "reused",
    )

    def __init__(self, owner: Owner, loop: asyncio.AbstractEventLoop) -> None:
        self._owner = owner
        self._loop = loop
        self._outbox = outbox_of(loop)
        self._gathering = gathering_of(loop)
        self._parser: Any = httptools.HttpResponseParser(self)
        self._transport: Any = None
        self._timer: asyncio.TimerHandle | None = None
        self._armed_s = math.inf
        self._due_s = math.inf
        self._due_head_s = math.inf
        self._heard_s = 0.0
        self._timeouts: Timeouts | None = None
        self._head: list[tuple[bytes, bytes]] = []
        self._head_only = False
        self._interim = False
        self._ended = False
        self._keep = False
        self._paused = False
        self._draining = False
        self._unproductive_bytes = 0
        self.response: Response | None = None
        self.heard = False
        self.lost = False
        self.reused = False

    # What the pool calls.

    def send(self, request: bytes, timeouts: Timeouts, *, head_only: bool) -> Response:
        """Write a request; the response is filled as the answer arrives and wakes its waiter."""
        self.response = response = Response(self, limit_bytes=self._owner.max_body_bytes)
        if self.lost:
            self.heard = False
            self._end_with(response, self._failed("closed the connection without an answer", None))
            return response
        self._head = response.headers
        self._head_only = head_only
        self._timeouts = timeouts
        self.heard = self._ended = self._interim = self._draining = False
        self._unproductive_bytes = 0
        now = self._loop.time()
        self._due_s = now + timeouts.total_s
        self._due_head_s = now + timeouts.first_byte_s
        self._arm(min(self._due_s, self._due_head_s))
        self._outbox.write(self._transport, request)
        return response

    def close(self) -> None:
        """Close at once, whatever is under way."""
        self.lost = True
        if self._transport is not None:
            self._transport.abort()

    # What the response calls.

    def resume(self) -> None:
        if self._paused:
            self._paused = False
            self._heard_s = self._loop.time()
            self._transport.resume_reading()

    def abandon(self) -> None:
        response = self.response
        if response is not None and not response.done:
            response.done = True
            response.error = UpstreamFailed("The answer was given up")
        self.close()

    def drain(self) -> None:
        self._draining = True
        self._due_s = self._loop.time() + DRAIN_S
        if self.response is not None:
            self.response.received_bytes = 0
        self.resume()
        self._arm(self._due_s)

    def fail_too_large(self) -> None:
        limit = self._owner.max_body_bytes if self.response is None else self.response.limit_bytes
        self._fail(UpstreamFailed(f"{self._who()} sent an answer larger than {limit} bytes"))

    def new_future(self) -> asyncio.Future[None]:
        return self._loop.create_future()

    @property
    def gathering(self) -> Gathering:
        return self._gathering

    # What the event loop calls.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport
        raw = transport.get_extra_info("socket")
        if raw is not None and raw.family in (socket.AF_INET, socket.AF_INET6):
            raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def data_received(self, data: bytes) -> None:
        response = self.response
        if response is None or response.done:
            # Nobody asked: whatever this is, it must not be taken for the answer to the next request.
            self.close()
            return
        first = not self.heard
        self.heard = True
        self._heard_s = self._loop.time()
        self._unproductive_bytes += len(data)
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            self._keep = False
            if not self._ended:
                self._fail(self._failed("sent something that is not HTTP/1.1", error))
                return
        if self._ended:
            self._finish(response)
        elif self._unproductive_bytes > MAX_HEAD_BYTES:
            self._fail(UpstreamFailed(f"{self._who()} sent headers larger than {MAX_HEAD_BYTES} bytes"))
        elif response.received_bytes > response.limit_bytes:
            self.fail_too_large()
        elif self._draining:
            self._drop(response)
        elif response.status:
            if first and self._timeouts is not None:
                self._arm(self._heard_s + self._timeouts.between_bytes_s)
            if response.consumer is not None and self._hand_on(response):
                return
            if not response.whole:
                if response.buffered_bytes > HIGH_WATER_BYTES and not self._paused:
                    self._paused = True
                    self._transport.pause_reading()
                response.wake()

    def _hand_on(self, response: Response) -> bool:
        """Give the consumer what has come, now or with what comes in a moment; false where it takes no more."""
        if not self._gathering.window_s or response.buffered_bytes > HIGH_WATER_BYTES:
            return response.deliver()
        if not response.held:
            response.held = True
            self._gathering.hold(response.release_held)
        return True

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost = True
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        response = self.response
        if response is not None and not response.done:
            if exc is None and response.status and self._ends_with_the_connection(response):
                response.done = True
                response.wake()
            elif not self.heard:
                self._end_with(response, self._failed("closed the connection without an answer", exc))
            else:
                self._end_with(response, self._failed("broke the answer off before its end", exc))
        self.response = None
        # The parser holds this object's methods: without this, only the garbage collector would free the two.
        self._parser = None
        self._owner.on_closed(self)

    # What the parser calls.

    def on_header(self, name: bytes, value: bytes) -> None:
        self._head.append((name, value))

    def on_headers_complete(self) -> None:
        status = self._parser.get_status_code()
        if 100 <= status < 200:
            self._interim = True
            return
        response = self.response
        if response is None or response.status:
            # A second answer: see `on_message_complete`.
            return
        response.status = status
        if self._head_only:
            self._ended = True

    def on_body(self, body: bytes) -> None:
        response = self.response
        if response is None or self._ended:
            self._keep = False
            return
        self._unproductive_bytes = 0
        response.chunks.append(body)
        response.buffered_bytes += len(body)
        response.received_bytes += len(body)

    def on_message_begin(self) -> None:
        # Bytes beyond the end of the answer: the connection is of no more use.
        if self._ended:
            self._keep = False
            self._head = []

    def on_message_complete(self) -> None:
        if self._interim:
            self._interim = False
            self._head.clear()
        elif not self._ended:
            self._ended = True
            self._keep = self._parser.should_keep_alive()

    # Ends.

    def _finish(self, response: Response) -> None:
        """The answer is complete: hand it over, and the connection back."""
        if response.received_bytes > response.limit_bytes:
            self.fail_too_large()
            return
        response.done = True
        response.wake()
        self.response = None
        self.resume()
        if not self._keep or self._head_only or self._transport.is_closing():
            self.close()
            return
        self.reused = True
        self._due_s = self._loop.time() + self._owner.idle_s
        self._arm(self._due_s)
        self._owner.on_idle(self)

    def _drop(self, response: Response) -> None:
        response.chunks.clear()
        response.buffered_bytes = 0
        if response.received_bytes > DRAIN_BYTES:
            self.close()

    def _ends_with_the_connection(self, response: Response) -> bool:
        """Whether the body was one without a declared length, which the closing ends (RFC 9112 section 6.3)."""
        return response.header(b"content-length") is None and response.header(b"transfer-encoding") is None

    def _fail(self, error: ModelportError) -> None:
        response = self.response
        if response is not None and not response.done:
            self._end_with(response, error)
        self.close()

    def _end_with(self, response: Response, error: ModelportError) -> None:
        response.error = error
        response.done = True
        response.wake()

    def _failed(self, what: str, cause: Exception | None) -> UpstreamFailed:
        internal = f"{type(cause).__name__}: {cause}" if cause is not None else None
        return UpstreamFailed(f"{self._who()} {what}", internal=internal)

    def _who(self) -> str:
        return f"The model's server {self._owner.name!r}"

    # Time. One timer lives as long as the connection: it is set anew only when it rings or when something is due
    # before it, so that a request in steady state touches no timer at all.

    def _arm(self, due_s: float) -> None:
        if due_s < self._armed_s:
            if self._timer is not None:
                self._timer.cancel()
            self._armed_s = due_s
            self._timer = self._loop.call_at(due_s, self._ring)

    def _ring(self) -> None:
        self._timer = None
        self._armed_s = math.inf
        if self.lost:
            return
        due_s, late = self._next_due()
        if due_s > self._loop.time():
            self._arm(due_s)
        elif late is None or self._draining:
            self.close()
        else:
            self._fail(CallTimeout(f"{self._who()} {late}"))

    def _next_due(self) -> tuple[float, str | None]:
        """When this connection has waited too long, and for what; None for what it is not blamed for."""
        response, timeouts = self.response, self._timeouts
        if response is None or timeouts is None or self._draining:
            return self._due_s, None
        total = self._due_s, "did not finish its answer in time"
        if not response.status or response.awaited:
            what = "no output" if response.status else "nothing"
            return min(total, (self._due_head_s, f"sent {what} for {timeouts.first_byte_s:g} s"))
        if self._paused:
            # The caller is slow, not the upstream.
            return total
        return min(total, (self._heard_s + timeouts.between_bytes_s, f"fell silent for {timeouts.between_bytes_s:g} s"))
