"""Writing the answer: straight into the connection where the server is ours, by ASGI messages elsewhere.

uvicorn checks every header name and value with regular expressions and writes head and body apart; a hot route knows
its own headers, so they are joined and written at once. Everything that ends a request (keep-alive, the next
pipelined request) is still uvicorn's own.
"""

from __future__ import annotations

from http import HTTPStatus
from typing import Any, Protocol

from modelport.api.connection import Connection
from modelport.api.hangup import connection_of

Headers = list[tuple[bytes, bytes]]

# An answer of this size may stay in the socket's buffer; smaller ones fit where nobody has to wait.
_LARGE_BYTES = 16_384
_STATUS = {int(status): b"HTTP/1.1 %d %b\r\n" % (status, status.phrase.encode()) for status in HTTPStatus}


class Wire(Protocol):
    """One answer: either `whole`, or `begin`, any number of `piece`, then `end`."""

    async def whole(self, status: int, headers: Headers, body: bytes) -> None: ...

    async def begin(self, status: int, headers: Headers) -> None: ...

    async def piece(self, data: bytes) -> None:
        """Waits while the client reads slower than the model writes."""
        ...

    async def end(self, data: bytes) -> None: ...

    def make_last(self) -> None:
        """Close the connection behind this answer, where it is ours to close."""
        ...


def body_at_hand(receive: Any) -> bytes | None:
    """The request's body if all of it has arrived on a connection of ours, so that nothing is waited for."""
    if connection_of(receive) is None:
        return None
    cycle = receive.__self__
    return None if cycle.more_body or cycle.disconnected else bytes(cycle.body)


def wire_of(receive: Any, send: Any) -> Wire:
    """How to answer the request of this ASGI `receive` and `send`."""
    connection = connection_of(receive)
    return AsgiWire(send) if connection is None else ConnectionWire(connection, receive.__self__)


class AsgiWire:
    """Any ASGI server."""

    __slots__ = ("_send",)

    def __init__(self, send: Any) -> None:
        self._send = send

    async def whole(self, status: int, headers: Headers, body: bytes) -> None:
        await self.begin(status, headers)
        await self.end(body)

    async def begin(self, status: int, headers: Headers) -> None:
        await self._send({"type": "http.response.start", "status": status, "headers": headers})

    async def piece(self, data: bytes) -> None:
        await self._send({"type": "http.response.body", "body": data, "more_body": True})

    async def end(self, data: bytes) -> None:
        await self._send({"type": "http.response.body", "body": data, "more_body": False})

    def make_last(self) -> None:
        """The server behind ASGI frames requests by itself."""


class ConnectionWire:
    """Our own connection. `cycle` is uvicorn's record of this request and its answer."""

    __slots__ = ("_chunked", "_connection", "_cycle", "_transport")

    def __init__(self, connection: Connection, cycle: Any) -> None:
        self._chunked = False
        self._connection = connection
        self._cycle = cycle
        self._transport = connection.transport

    async def whole(self, status: int, headers: Headers, body: bytes) -> None:
        await self._writable()
        head = self._head(status, headers)
        self._finish(head if self._cycle.scope["method"] == "HEAD" else head + body)

    async def begin(self, status: int, headers: Headers) -> None:
        await self._writable()
        # HTTP/1.0 knows no chunks: there the end of the connection ends the stream (RFC 9112 section 7.1).
        self._chunked = self._cycle.scope["http_version"] == "1.1"
        if self._chunked:
            headers.append((b"transfer-encoding", b"chunked"))
        self._write(self._head(status, headers))

    async def piece(self, data: bytes) -> None:
        if self._cycle.flow.write_paused:
            await self._writable()
        self._write(b"%x\r\n%b\r\n" % (len(data), data) if self._chunked else data)

    async def end(self, data: bytes) -> None:
        await self._writable()
        self._finish(b"%x\r\n%b\r\n0\r\n\r\n" % (len(data), data) if self._chunked else data)

    def make_last(self) -> None:
        self._cycle.keep_alive = False

    async def _writable(self) -> None:
        if self._cycle.flow.write_paused and not self._cycle.disconnected:
            await self._cycle.flow.drain()

    def _head(self, status: int, headers: Headers) -> bytes:
        cycle = self._cycle
        cycle.response_started = True
        cycle.waiting_for_100_continue = False
        if cycle.more_body:
            # Answered before the body was read: nobody can say where the next request would begin.
            cycle.keep_alive = False
        lines = [_STATUS[status]]
        lines += [b"%b: %b\r\n" % field for field in cycle.default_headers]
        lines += [b"%b: %b\r\n" % field for field in headers]
        lines.append(b"\r\n" if cycle.keep_alive else b"connection: close\r\n\r\n")
        return b"".join(lines)

    def _write(self, data: bytes) -> None:
        if not self._cycle.disconnected:
            self._connection.outbox.write(self._transport, data)

    def _finish(self, data: bytes) -> None:
        cycle = self._cycle
        if cycle.disconnected:
            return
        self._write(data)
        if len(data) > _LARGE_BYTES:
            # Whether the client takes it must be seen before the next request is read.
            self._connection.outbox.flush()
        cycle.response_complete = True
        cycle.message_event.set()
        if not cycle.keep_alive:
            self._connection.finish()
        cycle.on_response()
