"""One client's connection: uvicorn's own HTTP/1.1 protocol, with a bound on everything that a client can do to it.

What uvicorn leaves open and is closed here: a head that never ends or is too large, requests sent ahead without end,
an answer that nobody reads, bytes that are no HTTP (answered in the house's own form, and never before the answers
that are still owed), an upgrade that we don't offer, and a body that nobody wants any more.

Source: RFC 9112 sections 2.2, 6.3, 9.3.2, 9.6 (parsing, message length, pipelining, closing a connection).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from http import HTTPStatus
from typing import Any

import httptools
from uvicorn.protocols.http.flow_control import HIGH_WATER_LIMIT
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from modelport.api.problems import PROBLEM_TYPE, problem_body, retry_headers
from modelport.errors import BadRequest, BodyTooLarge, ModelportError, Overloaded
from modelport.kit.ids import IdSource
from modelport.kit.outbox import outbox_of
from modelport.settings import ServerSettings

# Every header costs a look-up or two; no browser and no proxy sends half as many.
MAX_HEADERS = 100
# Requests sent ahead while one is served. Reading goes on meanwhile, since only who reads learns of a hang-up; so what
# is read must have an end, and then the client is told by a closed connection to send the rest again.
MAX_QUEUED = 32
# Connections that were turned away and are still being closed; beyond, they are cut without waiting for the client.
MAX_LEAVING = 256
_LEAVE_S = 1.0
# How long a stopping server still takes a request on a connection that clients keep open.
_STOP_GRACE_S = 1.0


class Connection(HttpToolsProtocol):
    """Made by `connection_class`. `on_lost` holds those who want to know at once that the client is gone."""

    settings: ServerSettings
    ids: IdSource
    leaving = 0

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.outbox = outbox_of(self.loop)
        self.on_lost: set[Callable[[], None]] = set()
        # Set once nothing more is read of this client: what still arrives is thrown away.
        self._deaf = False
        self._turned_away = False
        self._refusal: ModelportError | None = None
        self._head_scope: object = None
        self._head_bytes = 0
        self._read_bytes = 0
        self._body_bytes = 0
        self._upgrading = False
        self._stopping = False
        self._head_timer: asyncio.TimerHandle | None = None
        self._write_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        if len(self.connections) >= self.settings.max_connections:
            self._turn_away(transport)
            return
        super().connection_made(transport)
        self._head_timer = self.loop.call_later(self.settings.header_timeout_s, self._head_late)

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        # uvicorn lets it run on after a reset, and would close the transport of somebody long gone.
        self._unset_keepalive_if_required()
        for timer in (self._head_timer, self._write_timer):
            if timer is not None:
                timer.cancel()
        if self._turned_away:
            type(self).leaving -= 1
        waiting, self.on_lost = self.on_lost, set()
        for callback in waiting:
            callback()

    def data_received(self, data: bytes) -> None:
        if self._deaf:
            return
        self._unset_keepalive_if_required()
        self._read_bytes = len(data)
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            self._decline_upgrade(data[upgrade.args[0] :])
            return
        except httptools.HttpParserError:
            self._refuse(self._refusal or BadRequest("This is no HTTP/1.1 request that can be understood."))
            return
        cycle = self.cycle
        if self.pipeline:
            self._bound_queue()
        if cycle is not None and cycle.scope is self.scope and not cycle.response_complete:
            if self._head_timer is not None:
                self._head_timer.cancel()
                self._head_timer = None
            if cycle.more_body:
                self._bound_body()
            return
        self._wait_for_head()

    def on_headers_complete(self) -> None:
        most = self.settings.max_header_bytes
        # Added up only where it can be too much: nearly every head comes in one small piece.
        suspect = self._head_bytes or self._read_bytes > most
        if len(self.headers) > MAX_HEADERS or (suspect and self._head_size() > most):
            self._refusal = self._head_too_large()
            raise self._refusal
        if len(self.pipeline) >= MAX_QUEUED:
            raise Overloaded()
        if self.parser.should_upgrade():
            self._upgrading = True
            return
        super().on_headers_complete()
        if self._stopping:
            self.cycle.keep_alive = False
        # Trailers are no headers (RFC 9110 section 6.5.1): they are gathered where nobody looks.
        self.headers = []
        self._body_bytes = 0

    def on_message_complete(self) -> None:
        if not self._upgrading:
            super().on_message_complete()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self.transport.get_write_buffer_size():
            self._watch_writing()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._watch_writing()

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._write_timer is not None:
            self._write_timer.cancel()

    def send_400_response(self, msg: str) -> None:
        self._refuse(BadRequest(msg))

    def shutdown(self) -> None:
        """uvicorn stops: the next answer is the connection's last; one without a request is closed after a grace.

        A client that is about to send on a connection it keeps would otherwise find it closed under its request,
        which it must not repeat by itself (RFC 9112 section 9.3.1).
        """
        self._stopping = True
        self.outbox.flush()
        if self.cycle is not None and not self.cycle.response_complete:
            self.cycle.keep_alive = False
        else:
            self.loop.call_later(_STOP_GRACE_S, self._stop_if_idle)

    def _stop_if_idle(self) -> None:
        if self.cycle is None or self.cycle.response_complete:
            self.transport.close()

    def listen(self) -> None:
        """Read on: only who reads learns that the client hung up."""
        self.flow.resume_reading()

    def finish(self) -> None:
        """Close behind the last answer. A client in the middle of sending is given time to read it first."""
        self.outbox.flush()
        if self.cycle.more_body or self._deaf:
            self._leave(self.settings.header_timeout_s)
        else:
            self.transport.close()

    def _decline_upgrade(self, rest: bytes) -> None:
        """Take the request for what it is without the upgrade, which also keeps its body: some clients offer HTTP/2
        with everything they send."""
        self._upgrading = False
        method = self.parser.get_method()
        if method == b"CONNECT":
            self._refuse(BadRequest("This is no proxy."))
            return
        lines = [b"%b %b HTTP/1.1\r\n" % (method, self.url)]
        lines += [name + b": " + value + b"\r\n" for name, value in self.headers if name != b"upgrade"]
        self.parser = httptools.HttpRequestParser(self)
        self.data_received(b"".join(lines) + b"\r\n" + rest)

    def _bound_body(self) -> None:
        """Refuse a body that is mostly something else: chunk extensions, trailers without end."""
        self._body_bytes += self._read_bytes
        if self._body_bytes > 2 * self.settings.max_body_bytes + self.settings.max_header_bytes:
            self._refuse(BodyTooLarge("The body takes far more bytes to send than it has."))

    def _bound_queue(self) -> None:
        """Read on behind requests that wait their turn, unless the last of them brings much."""
        if len(self.cycle.body) > HIGH_WATER_LIMIT:
            self._refuse(Overloaded("Wait for the answer before you send another large request on this connection."))
        else:
            self.flow.resume_reading()

    def _wait_for_head(self) -> None:
        """More of a head arrived, without its end; or of a body that was answered already."""
        cycle = self.cycle
        if self._head_timer is None and (cycle is None or cycle.response_complete):
            self._head_timer = self.loop.call_later(self.settings.header_timeout_s, self._head_late)
        if cycle is not None and cycle.scope is self.scope:
            return
        if self._head_scope is not self.scope:
            # The first piece may have held other requests, and is bounded by what is read at once.
            self._head_scope, self._head_bytes = self.scope, 1
            return
        self._head_bytes += self._read_bytes
        if self._head_bytes > self.settings.max_header_bytes:
            self._refuse(self._head_too_large())

    def _head_size(self) -> int:
        return len(self.url) + sum(len(name) + len(value) + 4 for name, value in self.headers)

    def _head_too_large(self) -> ModelportError:
        most = self.settings.max_header_bytes
        error = BodyTooLarge(f"Address and headers together may have {most:,} bytes and {MAX_HEADERS} lines.")
        error.status = 431
        return error

    def _head_late(self) -> None:
        self._head_timer = None
        if self.scope is None or (self.cycle is not None and self.cycle.scope is self.scope):
            self.transport.close()
            return
        late = BadRequest(f"The headers did not arrive within {self.settings.header_timeout_s:g} s.")
        late.status = 408
        self._refuse(late)

    def _refuse(self, error: ModelportError) -> None:
        """Take nothing more from this client; say why, after every answer that is still owed."""
        self.outbox.flush()
        self._deaf = True
        self.flow.resume_reading()
        cycle = self.cycle
        if cycle is None or cycle.scope is not self.scope:
            if cycle is None or cycle.response_complete:
                self._say(error)
            else:
                cycle.keep_alive = False
        elif cycle.response_complete:
            self.transport.close()
        elif not cycle.more_body:
            cycle.keep_alive = False
        elif self.pipeline and self.pipeline[0][0] is cycle:
            self.pipeline[0] = (cycle, self._refusing(error))
        else:
            cycle.disconnected = True
            cycle.message_event.set()
            if cycle.response_started:
                self.transport.close()
            else:
                self._say(error)

    def _refusing(self, error: ModelportError) -> Any:
        async def app(_scope: Any, _receive: Any, _send: Any) -> None:
            self.cycle.disconnected = True
            self._say(error)

        return app

    def _say(self, error: ModelportError) -> None:
        """The last words on this connection."""
        self.outbox.flush()
        if self.transport.is_closing():
            return
        request_id = self.ids.new("req_")
        body = problem_body(error, request_id=request_id, path="", base_url=self.settings.public_url)
        headers = [
            *self.server_state.default_headers,
            (b"content-type", PROBLEM_TYPE),
            (b"content-length", b"%d" % len(body)),
            (b"x-request-id", request_id.encode()),
            *retry_headers(error),
            (b"connection", b"close"),
        ]
        head = b"HTTP/1.1 %d %b\r\n" % (error.status, HTTPStatus(error.status).phrase.encode())
        lines = b"".join(name + b": " + value + b"\r\n" for name, value in headers)
        self.transport.write(head + lines + b"\r\n" + body)
        self._leave(_LEAVE_S if self._turned_away else self.settings.header_timeout_s)

    def _leave(self, patience_s: float) -> None:
        """Say that we are done and let the client find out; closing at once on what it still sends would be a reset,
        which can destroy the answer before it is read."""
        self._deaf = True
        self.outbox.flush()
        if self.transport.is_closing():
            return
        if self.transport.can_write_eof():
            self.transport.write_eof()
        if self._head_timer is not None:
            self._head_timer.cancel()
        if self.flow is not None:
            self.flow.resume_reading()
        self._head_timer = self.loop.call_later(patience_s, self.transport.abort)

    def _turn_away(self, transport: Any) -> None:
        self.transport = transport
        self._deaf = self._turned_away = True
        type(self).leaving += 1
        if self.leaving > MAX_LEAVING:
            transport.abort()
        else:
            self._say(Overloaded("This server has as many connections as it may; come again in a second."))

    def _watch_writing(self) -> None:
        """Cut the client off unless it reads on."""
        if self._write_timer is not None:
            self._write_timer.cancel()
        left_bytes = self.transport.get_write_buffer_size()
        self._write_timer = self.loop.call_later(self.settings.send_timeout_s, self._check_writing, left_bytes)

    def _check_writing(self, left_bytes: int) -> None:
        self._write_timer = None
        if self.cycle is not None and not self.cycle.response_complete and not self.flow.write_paused:
            # The next answer is filling the buffer again, so that its size says nothing.
            return
        now_bytes = self.transport.get_write_buffer_size()
        if now_bytes >= left_bytes > 0:
            self.transport.abort()
        elif now_bytes:
            self._watch_writing()


def connection_class(settings: ServerSettings, ids: IdSource) -> type[Connection]:
    """The protocol for a server with these bounds."""
    return type("BoundedConnection", (Connection,), {"settings": settings, "ids": ids})
