"""One client's connection: HTTP/1.1 parsed by httptools, with a bound on everything that a client can do to it.

Bounded are: a head that never ends or is too large, requests sent ahead without end, an answer that nobody reads,
bytes that are no HTTP (answered in the house's own form, and never before the answers that are still owed), an
upgrade that we don't offer (the only one is to a WebSocket), and a body that nobody wants any more.

Source: RFC 9112 sections 2.2, 6.3, 9.3.2, 9.6 (parsing, message length, pipelining, closing a connection).
"""

from __future__ import annotations

import asyncio
from collections import deque
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

import httptools

from modelport.api.line import Line
from modelport.api.wire import SOCKETS, Wire
from modelport.errors import BadRequest, BodyTooLarge, ModelportError, Overloaded

if TYPE_CHECKING:
    from modelport.api.server import Server

# Every header costs a look-up or two; no browser and no proxy sends half as many.
MAX_HEADERS = 100
# A body that is ahead of its reader by this much stops the reading.
HIGH_WATER_BYTES = 65_536
# Requests sent ahead while one is served. Reading goes on meanwhile, since only who reads learns of a hang-up; so what
# is read must have an end, and then the client is told by a closed connection to send the rest again.
MAX_QUEUED = 32
# How long a stopping server still takes a request on a connection that clients keep open.
_STOP_GRACE_S = 1.0


class Connection(Line):
    """`newest` is the request that was read last, or is being read; `_answering` the one that is being answered, and
    those between the two wait in `_queue`."""

    __slots__ = (
        "_answering",
        "_body_bytes",
        "_client",
        "_expects_continue",
        "_head_bytes",
        "_head_message",
        "_headers",
        "_idle_since_s",
        "_idle_timer",
        "_in_head",
        "_messages",
        "_parser",
        "_queue",
        "_read_bytes",
        "_refusal",
        "_refused",
        "_stopping",
        "_upgrading",
        "_url",
        "newest",
    )

    def __init__(self, server: Server, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(server, loop)
        self.newest: Wire | None = None
        self._parser: Any = _new_parser(self)
        self._answering: Wire | None = None
        self._queue: deque[Wire] = deque()
        self._client: tuple[str, int] | None = None
        self._refusal: ModelportError | None = None
        # What is said when the turn of the newest request comes, in place of its answer.
        self._refused: ModelportError | None = None
        # The message that is being read: its number, and whether its head is still arriving.
        self._messages = 0
        self._in_head = False
        self._url = b""
        self._headers: list[tuple[bytes, bytes]] = []
        self._expects_continue = False
        self._head_message = 0
        self._head_bytes = 0
        self._read_bytes = 0
        self._body_bytes = 0
        self._upgrading = False
        self._stopping = False
        self._idle_since_s = 0.0
        self._idle_timer: asyncio.TimerHandle | None = None

    # What the event loop calls.

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        if len(self.server.connections) >= self._settings.max_connections:
            self._turn_away()
            return
        self.server.connections.add(self)
        peer = transport.get_extra_info("peername")
        self._client = (str(peer[0]), int(peer[1])) if isinstance(peer, tuple) else None
        self._head_timer = self.loop.call_later(self._settings.header_timeout_s, self._head_late)
        if self.server.stopping:
            self.shutdown()

    def connection_lost(self, exc: Exception | None) -> None:
        self.server.drop(self)
        for timer in (self._head_timer, self._write_timer, self._idle_timer):
            if timer is not None:
                timer.cancel()
        if self._turned_away:
            self.server.leaving -= 1
        self.resume_writing()
        self._queue.clear()
        for wire in {self._answering, self.newest}:
            if wire is not None:
                wire.lose()
        # The parser holds this object's methods: without this, only the garbage collector would free the two.
        self._parser = None

    def data_received(self, data: bytes) -> None:
        if self._deaf:
            return
        self._read_bytes = len(data)
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            rest = data[upgrade.args[0] :]
            if self._may_switch():
                self._open_tunnel(rest)
            else:
                self._decline_upgrade(rest)
            return
        except httptools.HttpParserError:
            self._refuse(self._refusal or BadRequest("This is no HTTP/1.1 request that can be understood."))
            return
        newest = self.newest
        if self._queue:
            self._bound_queue()
        if newest is not None and not self._in_head and not newest.complete:
            if self._head_timer is not None:
                self._head_timer.cancel()
                self._head_timer = None
            if newest.more_body:
                self._bound_body()
            return
        self._wait_for_head()

    def eof_received(self) -> bool:
        """A client that has closed its sending side is taken to be gone."""
        return False

    # What the parser calls.

    def on_message_begin(self) -> None:
        self._messages += 1
        self._in_head = True
        self._url = b""
        self._headers = []
        self._expects_continue = False

    def on_url(self, url: bytes) -> None:
        self._url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        name = name.lower()
        if name == b"expect" and value.lower() == b"100-continue":
            self._expects_continue = True
        self._headers.append((name, value))

    def on_headers_complete(self) -> None:
        most = self._settings.max_header_bytes
        # Added up only where it can be too much: nearly every head comes in one small piece.
        suspect = self._head_bytes or self._read_bytes > most
        if len(self._headers) > MAX_HEADERS or (suspect and self._head_size() > most):
            self._refusal = self._head_too_large()
            raise self._refusal
        if len(self._queue) >= MAX_QUEUED:
            raise Overloaded()
        parser = self._parser
        if parser.should_upgrade():
            self._upgrading = True
            return
        version = parser.get_http_version()
        keep_alive = version != "1.0" and parser.should_keep_alive() and not self._stopping
        before = self.newest
        wire = self.newest = Wire(
            self, self._scope(version), keep_alive=keep_alive, expects_continue=self._expects_continue
        )
        self._in_head = False
        # Trailers are no headers (RFC 9110 section 6.5.1): they are gathered where nobody looks.
        self._headers = []
        self._body_bytes = 0
        if before is None or before.complete:
            self._answering = wire
            self.server.run(wire, self.loop)
        else:
            self._pause_reading()
            self._queue.append(wire)

    def on_body(self, body: bytes) -> None:
        wire = self.newest
        if self._upgrading or wire is None or wire.complete:
            return
        wire.feed(body)
        if wire.size_bytes > HIGH_WATER_BYTES:
            self._pause_reading()

    def on_message_complete(self) -> None:
        wire = self.newest
        if not self._upgrading and wire is not None and not wire.complete:
            wire.end_of_body()

    def _scope(self, version: str) -> dict[str, Any]:
        """ASGI's description of the request whose head is complete."""
        url = httptools.parse_url(self._url)
        path = url.path.decode("ascii")
        return {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": version,
            "method": self._parser.get_method().decode("ascii"),
            "scheme": "http",
            "path": unquote(path) if "%" in path else path,
            "raw_path": url.path,
            "query_string": url.query or b"",
            "root_path": "",
            "headers": self._headers,
            "client": self._client,
            "server": None,
            "state": {},
        }

    # What the wires call.

    def answered(self, wire: Wire) -> None:
        """All of an answer was written: the next request has its turn, or the connection lies idle."""
        if not wire.keep_alive:
            self._close_behind(wire)
        if self.transport.is_closing():
            return
        self.resume_reading()
        if self._queue:
            self._answer_next()
        else:
            self._idle_since_s = self.loop.time()
            if self._idle_timer is None:
                self._idle_timer = self.loop.call_later(self._settings.keep_alive_s, self._close_if_idle)
        if self.transport.get_write_buffer_size():
            self._watch_writing()

    def _answer_next(self) -> None:
        wire = self._answering = self._queue.popleft()
        if wire is self.newest and self._refused is not None:
            wire.gone = True
            self._say(self._refused)
        else:
            self.server.run(wire, self.loop)

    # Closing.

    def shutdown(self) -> None:
        """The server stops: the next answer is the connection's last; one without a request is closed after a grace.

        A client that is about to send on a connection it keeps would otherwise find it closed under its request,
        which it must not repeat by itself (RFC 9112 section 9.3.1).
        """
        self._stopping = True
        self.outbox.flush()
        if self.newest is not None and not self.newest.complete:
            self.newest.keep_alive = False
            if self.newest.on_stop is not None:
                self.newest.on_stop()
        else:
            self.loop.call_later(_STOP_GRACE_S, self._stop_if_idle)

    def is_filling(self) -> bool:
        return self.newest is not None and not self.newest.complete and not self.write_paused

    def _stop_if_idle(self) -> None:
        if self.newest is None or self.newest.complete:
            self.transport.close()

    def _close_if_idle(self) -> None:
        """Close what has lain idle for long enough. One timer for the connection: requests only set the time."""
        self._idle_timer = None
        if self._in_head or (self.newest is not None and not self.newest.complete):
            return
        left_s = self._idle_since_s + self._settings.keep_alive_s - self.loop.time()
        if left_s > 0:
            self._idle_timer = self.loop.call_later(left_s, self._close_if_idle)
        else:
            self.transport.close()

    def _close_behind(self, wire: Wire) -> None:
        """Close behind the last answer. A client in the middle of sending is given time to read it first."""
        self.outbox.flush()
        newest = self.newest or wire
        if newest.more_body or self._deaf:
            self._leave(self._settings.header_timeout_s)
        else:
            self.transport.close()

    def _may_switch(self) -> bool:
        """Whether the request asks for a WebSocket where there is one, and no answer is owed before it."""
        asked = any(name == b"upgrade" and value.lower() == b"websocket" for name, value in self._headers)
        idle = self.newest is None or self.newest.complete
        place = self._url.partition(b"?")[0]
        return asked and idle and not self._stopping and self._parser.get_method() == b"GET" and place in SOCKETS

    def _open_tunnel(self, rest: bytes) -> None:
        """Hand all that arrives from here on to one wire, whoever answers it."""
        self._upgrading = self._in_head = False
        wire = Wire(self, self._scope(self._parser.get_http_version()), keep_alive=False, expects_continue=False)
        wire.tunnel = True
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None
        self._parser = SimpleNamespace(feed_data=self.on_body)
        self._answering = self.newest = wire
        self.server.run(wire, self.loop)
        if rest:
            self.on_body(rest)

    def _decline_upgrade(self, rest: bytes) -> None:
        """Take the request for what it is without the upgrade, which also keeps its body: some clients offer HTTP/2
        with everything they send."""
        self._upgrading = False
        method = self._parser.get_method()
        if method == b"CONNECT":
            self._refuse(BadRequest("This is no proxy."))
            return
        lines = [b"%b %b HTTP/1.1\r\n" % (method, self._url)]
        lines += [b"%b: %b\r\n" % field for field in self._headers if field[0] != b"upgrade"]
        self._parser = _new_parser(self)
        self.data_received(b"".join(lines) + b"\r\n" + rest)

    def _bound_body(self) -> None:
        """Refuse a body that is mostly something else: chunk extensions, trailers without end."""
        if self.newest is not None and self.newest.tunnel:
            # Bounded by who reads it, message by message.
            return
        self._body_bytes += self._read_bytes
        if self._body_bytes > 2 * self._settings.max_body_bytes + self._settings.max_header_bytes:
            self._refuse(BodyTooLarge("The body takes far more bytes to send than it has."))

    def _bound_queue(self) -> None:
        """Read on behind requests that wait their turn, unless the last of them brings much."""
        if self.newest is not None and self.newest.size_bytes > HIGH_WATER_BYTES:
            self._refuse(Overloaded("Wait for the answer before you send another large request on this connection."))
        else:
            self.resume_reading()

    def _wait_for_head(self) -> None:
        """More of a head arrived, without its end; or of a body that was answered already."""
        idle = self.newest is None or self.newest.complete
        if self._head_timer is None and idle:
            self._head_timer = self.loop.call_later(self._settings.header_timeout_s, self._head_late)
        if self.newest is not None and not self._in_head:
            return
        if self._head_message != self._messages:
            # The first piece may have held other requests, and is bounded by what is read at once.
            self._head_message, self._head_bytes = self._messages, 1
            return
        self._head_bytes += self._read_bytes
        if self._head_bytes > self._settings.max_header_bytes:
            self._refuse(self._head_too_large())

    def _head_size(self) -> int:
        return len(self._url) + sum(len(name) + len(value) + 4 for name, value in self._headers)

    def _head_too_large(self) -> ModelportError:
        most = self._settings.max_header_bytes
        error = BodyTooLarge(f"Address and headers together may have {most:,} bytes and {MAX_HEADERS} lines.")
        error.status = 431
        return error

    def _head_late(self) -> None:
        self._head_timer = None
        if not self._in_head:
            self.transport.close()
            return
        late = BadRequest(f"The headers did not arrive within {self._settings.header_timeout_s:g} s.")
        late.status = 408
        self._refuse(late)

    def _refuse(self, error: ModelportError) -> None:
        """Take nothing more from this client; say why, after every answer that is still owed."""
        self.outbox.flush()
        self._deaf = True
        self.resume_reading()
        newest = self.newest
        if newest is None or self._in_head:
            if newest is None or newest.complete:
                self._say(error)
            else:
                newest.keep_alive = False
        elif newest.complete:
            self.transport.close()
        elif not newest.more_body:
            newest.keep_alive = False
        elif newest in self._queue:
            self._refused = error
        else:
            started = newest.started
            newest.lose()
            if started:
                self.transport.close()
            else:
                self._say(error)


def _new_parser(connection: Connection) -> Any:
    parser = httptools.HttpRequestParser(connection)
    # A client may send on behind a request that it called its last: that is not read, and no reason to refuse this one.
    parser.set_dangerous_leniencies(lenient_data_after_close=True)
    return parser
