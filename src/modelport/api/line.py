"""One client's line: reading and writing paused and resumed, last words, and how it is left.

Source: RFC 9112 section 9.6 (tear-down).
"""

from __future__ import annotations

import asyncio
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

from modelport.api.problems import PROBLEM_TYPE, problem_body, retry_headers
from modelport.errors import ModelportError, Overloaded
from modelport.kit.outbox import outbox_of

if TYPE_CHECKING:
    from modelport.api.server import Server

# Connections that were turned away and are still being closed; beyond, they are cut without waiting for the client.
MAX_LEAVING = 256
_LEAVE_S = 1.0


class Line(asyncio.Protocol):
    """What every connection does with its socket; `Connection` makes requests out of what is read."""

    __slots__ = (
        "_deaf",
        "_head_timer",
        "_reading_paused",
        "_settings",
        "_turned_away",
        "_waiting_writers",
        "_write_timer",
        "loop",
        "outbox",
        "server",
        "transport",
        "write_paused",
    )

    def __init__(self, server: Server, loop: asyncio.AbstractEventLoop) -> None:
        self.server = server
        self.loop = loop
        self.outbox = outbox_of(loop)
        self.transport: Any = None
        self.write_paused = False
        self._settings = server.settings
        self._waiting_writers: list[asyncio.Future[None]] = []
        self._reading_paused = False
        # Set once nothing more is read of this client: what still arrives is thrown away.
        self._deaf = False
        self._turned_away = False
        self._head_timer: asyncio.TimerHandle | None = None
        self._write_timer: asyncio.TimerHandle | None = None

    def is_filling(self) -> bool:
        """Whether the next answer is filling the buffer again, so that its size says nothing of the client."""
        raise NotImplementedError

    def resume_writing(self) -> None:
        self.write_paused = False
        if self._write_timer is not None:
            self._write_timer.cancel()
        waiting, self._waiting_writers = self._waiting_writers, []
        for writer in waiting:
            if not writer.done():
                writer.set_result(None)

    def pause_writing(self) -> None:
        self.write_paused = True
        self._watch_writing()

    async def writable(self) -> None:
        """Return when the client has read enough, or is gone."""
        while self.write_paused:
            writer = self.loop.create_future()
            self._waiting_writers.append(writer)
            await writer

    def resume_reading(self) -> None:
        if self._reading_paused:
            self._reading_paused = False
            self.transport.resume_reading()

    def _pause_reading(self) -> None:
        if not self._reading_paused:
            self._reading_paused = True
            self.transport.pause_reading()

    def say_continue(self) -> None:
        self.outbox.write(self.transport, b"HTTP/1.1 100 Continue\r\n\r\n")

    def cut(self) -> None:
        """Close at once, in the middle of whatever it is."""
        self.outbox.flush()
        self.transport.close()

    def _say(self, error: ModelportError) -> None:
        """The last words on this connection."""
        self.outbox.flush()
        if self.transport.is_closing():
            return
        request_id = self.server.ids.new("req_")
        body = problem_body(error, request_id=request_id, path="", base_url=self._settings.public_url)
        fields = [
            (b"content-type", PROBLEM_TYPE),
            (b"content-length", b"%d" % len(body)),
            (b"x-request-id", request_id.encode()),
            *retry_headers(error),
            (b"connection", b"close"),
        ]
        head = b"HTTP/1.1 %d %b\r\n" % (error.status, HTTPStatus(error.status).phrase.encode())
        lines = b"".join(b"%b: %b\r\n" % field for field in fields)
        self.transport.write(head + self.server.date_line() + lines + b"\r\n" + body)
        self._leave(_LEAVE_S if self._turned_away else self._settings.header_timeout_s)

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
        self.resume_reading()
        self._head_timer = self.loop.call_later(patience_s, self.transport.abort)

    def _turn_away(self) -> None:
        self._deaf = self._turned_away = True
        self.server.leaving += 1
        if self.server.leaving > MAX_LEAVING:
            self.transport.abort()
        else:
            self._say(Overloaded("This server has as many connections as it may; come again in a second."))

    def _watch_writing(self) -> None:
        """Cut the client off unless it reads on."""
        if self._write_timer is not None:
            self._write_timer.cancel()
        left_bytes = self.transport.get_write_buffer_size()
        self._write_timer = self.loop.call_later(self._settings.send_timeout_s, self._check_writing, left_bytes)

    def _check_writing(self, left_bytes: int) -> None:
        self._write_timer = None
        if self.is_filling():
            return
        now_bytes = self.transport.get_write_buffer_size()
        if now_bytes >= left_bytes > 0:
            self.transport.abort()
        elif now_bytes:
            self._watch_writing()
