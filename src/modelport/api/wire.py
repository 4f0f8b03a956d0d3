"""One request on a connection of ours and its answer.

The hot routes write it with `whole`, or `begin`, `piece` and `end`: a route that knows its own headers has them joined
and written at once. Applications behind (FastAPI) see the same thing as ASGI's `receive` and `send`.

Source: RFC 9112 sections 6 and 7.1 (message bodies, chunks); ASGI specification 3.0, HTTP & WebSocket format 2.3.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from modelport.api.connection import Connection

Headers = list[tuple[bytes, bytes]]

# Where a client may switch to the WebSocket protocol.
SOCKETS = frozenset({b"/v1/ws"})
# An answer of this size may stay in the socket's buffer; smaller ones fit where nobody has to wait.
_LARGE_BYTES = 16_384
_STATUS = {int(status): b"HTTP/1.1 %d %b\r\n" % (status, status.phrase.encode()) for status in HTTPStatus}
_NO_BODY = frozenset({HTTPStatus.NO_CONTENT, HTTPStatus.NOT_MODIFIED})


class AnswerWriter(Protocol):
    """What an answer is written to: either `whole`, or `begin`, any number of `piece`, then `end`."""

    async def whole(self, status: int, headers: Headers, body: bytes) -> None: ...

    async def begin(self, status: int, headers: Headers) -> None: ...

    async def piece(self, data: bytes) -> None: ...

    def put(self, data: bytes) -> bool: ...

    async def end(self, data: bytes) -> None: ...


class AnswerRecorder(AnswerWriter, Protocol):
    """A writer that keeps what goes through it."""

    def close(self) -> None:
        """The request is over, however far its answer came."""
        ...


class Wire:
    """Concurrency: filled by its connection, answered by one task.

    `complete` is set once all of the answer was written, `gone` once the client is; `more_body` while the request's
    body has not arrived whole.
    """

    __slots__ = (
        "_arrived",
        "_body",
        "_chunked",
        "_connection",
        "_expects_continue",
        "_head_of_answer",
        "_mute",
        "_news",
        "_waiter",
        "complete",
        "gone",
        "keep_alive",
        "more_body",
        "on_gone",
        "on_stop",
        "scope",
        "size_bytes",
        "started",
        "task",
        "tunnel",
    )

    def __init__(
        self, connection: Connection, scope: dict[str, Any], *, keep_alive: bool, expects_continue: bool
    ) -> None:
        self._connection = connection
        self.scope = scope
        self.keep_alive = keep_alive
        self._expects_continue = expects_continue
        self._mute = scope["method"] == "HEAD"
        self._body: list[bytes] = []
        # Of the body, what has arrived and was not taken yet.
        self.size_bytes = 0
        self.more_body = True
        self._news = False
        self._waiter: asyncio.Future[None] | None = None
        self._chunked = False
        self._head_of_answer: tuple[int, Headers] | None = None
        self.started = False
        self.complete = False
        self.gone = False
        self.on_gone: Callable[[], None] | None = None
        # Called when the server stops, by whoever answers without an end of its own.
        self.on_stop: Callable[[], None] | None = None
        # A request to switch protocols: what arrives behind its head is fed as it comes, and has no end.
        self.tunnel = False
        self.task: asyncio.Task[None] | None = None

    # The request.

    def feed(self, body: bytes) -> None:
        """A piece of the body has arrived."""
        self._body.append(body)
        self.size_bytes += len(body)
        self._notify()

    def end_of_body(self) -> None:
        self.more_body = False
        self._notify()

    def lose(self) -> None:
        """The client is gone."""
        if not self.complete:
            self.gone = True
        self._notify()
        callback, self.on_gone = self.on_gone, None
        if callback is not None:
            callback()

    def body_at_hand(self) -> bytes | None:
        """The whole body if all of it has arrived, so that nothing is waited for."""
        return None if self.more_body or self.gone else self._take()

    def watch(self, callback: Callable[[], None]) -> None:
        """Call `callback` once when the client hangs up; set `on_gone` to None to stop that."""
        if self._connection.transport.is_closing():
            callback()
            return
        self.on_gone = callback
        # Only who reads learns of a hang-up, and a body larger than what is held at once has stopped the reading.
        self._connection.resume_reading()

    async def receive(self) -> dict[str, Any]:
        """ASGI: the next piece of the body, or the hang-up."""
        if self._expects_continue:
            self._expects_continue = False
            self._connection.say_continue()
        while not (self._news or self.gone or self.complete):
            self._connection.resume_reading()
            self._waiter = self._connection.loop.create_future()
            await self._waiter
        self._news = False
        if self.gone or self.complete:
            return {"type": "http.disconnect"}
        return {"type": "http.request", "body": self._take(), "more_body": self.more_body}

    def nudge(self) -> None:
        """Have `receive` return, if with nothing."""
        self._notify()

    def _take(self) -> bytes:
        body = self._body
        self._body = []
        self.size_bytes = 0
        return body[0] if len(body) == 1 else b"".join(body)

    def _notify(self) -> None:
        self._news = True
        waiter, self._waiter = self._waiter, None
        if waiter is not None and not waiter.done():
            waiter.set_result(None)

    # The answer.

    async def whole(self, status: int, headers: Headers, body: bytes) -> None:
        if self._connection.write_paused:
            await self._connection.writable()
        head = self._head(status, headers)
        self._finish(head if self._mute else head + body)

    async def begin(self, status: int, headers: Headers, *, framed: bool = False) -> None:
        """Status and headers. `framed`: they tell the length of what follows."""
        if self._connection.write_paused:
            await self._connection.writable()
        # HTTP/1.0 knows no chunks: there the end of the connection ends the stream (RFC 9112 section 7.1).
        self._chunked = not framed and self.scope["http_version"] == "1.1"
        if self._chunked:
            headers.append((b"transfer-encoding", b"chunked"))
        elif not framed:
            self.keep_alive = False
        self._write(self._head(status, headers))

    async def switch(self, headers: Headers) -> None:
        """Switch protocols: from here on, pieces are written as they are (RFC 9110 section 7.8)."""
        lines = b"".join(b"%b: %b\r\n" % field for field in headers)
        self.started, self.keep_alive = True, False
        self._write(_STATUS[HTTPStatus.SWITCHING_PROTOCOLS] + lines + b"\r\n")

    async def piece(self, data: bytes) -> None:
        """Waits while the client reads slower than the model writes."""
        while not self.put(data):
            await self._connection.writable()

    def put(self, data: bytes) -> bool:
        """`piece` without a pause; false, with nothing written, when the client has to catch up first."""
        if self._connection.write_paused:
            return False
        if not self._mute:
            self._write(b"%x\r\n%b\r\n" % (len(data), data) if self._chunked else data)
        return True

    async def end(self, data: bytes) -> None:
        if self._connection.write_paused:
            await self._connection.writable()
        if self._mute:
            data = b""
        elif self._chunked:
            data = b"%x\r\n%b\r\n0\r\n\r\n" % (len(data), data) if data else b"0\r\n\r\n"
        self._finish(data)

    def make_last(self) -> None:
        """Close the connection behind this answer."""
        self.keep_alive = False

    def break_off(self) -> None:
        """Nothing more will be written: where the answer is not complete, the client must not take it for that."""
        if not self.complete and not self.gone:
            self._connection.cut()

    async def send(self, message: dict[str, Any]) -> None:
        """ASGI: the head of an answer, or a piece of its body. Raises: RuntimeError for what is no valid answer."""
        if self.gone:
            return
        if message["type"] == "http.response.start":
            self.started = True
            self._head_of_answer = message["status"], _checked(message.get("headers", ()))
            return
        body, more = message.get("body", b""), message.get("more_body", False)
        head, self._head_of_answer = self._head_of_answer, None
        if head is None:
            await (self.piece(body) if more else self.end(body))
            return
        status, headers = head
        framed = any(name == b"content-length" for name, _ in headers)
        if more:
            await self.begin(status, headers, framed=framed)
            if body:
                await self.piece(body)
            return
        if not framed and status not in _NO_BODY:
            headers.append((b"content-length", b"%d" % len(body)))
        await self.whole(status, headers, body)

    def _head(self, status: int, headers: Headers) -> bytes:
        self.started = True
        self._expects_continue = False
        if self.more_body:
            # Answered before the body was read: nobody can say where the next request would begin.
            self.keep_alive = False
        # Upstreams refuse with numbers that no registry has, such as Anthropic's 529; the phrase may be empty.
        status_line = _STATUS.get(status) or b"HTTP/1.1 %d \r\n" % status
        lines = [b": ".join(field) for field in headers]
        lines.append(b"\r\n" if self.keep_alive else b"connection: close\r\n\r\n")
        return status_line + self._connection.server.date_line() + b"\r\n".join(lines)

    def _write(self, data: bytes) -> None:
        if not self.gone:
            self._connection.outbox.write(self._connection.transport, data)

    def _finish(self, data: bytes) -> None:
        if self.gone:
            return
        connection = self._connection
        if data:
            connection.outbox.write(connection.transport, data)
        if len(data) > _LARGE_BYTES:
            # Whether the client takes it must be seen before the next request is read.
            connection.outbox.flush()
        self.complete = True
        if self._waiter is not None:
            self._notify()
        connection.answered(self)


def _checked(headers: Any) -> Headers:
    """An application's headers. Raises: RuntimeError for one that would end its line."""
    found = [(bytes(name).lower(), bytes(value)) for name, value in headers]
    for name, value in found:
        if b"\r" in value or b"\n" in value or b"\r" in name or b"\n" in name:
            raise RuntimeError(f"the header {name!r} has a line end in it")
    return found
