"""The HTTP server of one worker: it accepts connections on one socket and, when it stops, lets calls in flight end.

Decision: docs/decisions/0013-http-server.md.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from collections.abc import Awaitable, Callable
from email.utils import formatdate

import structlog

from modelport.api.connection import Connection
from modelport.api.flood import Flood
from modelport.api.wire import Wire
from modelport.kit.ids import IdSource
from modelport.settings import ServerSettings

# Connections that wait to be accepted; the kernel's own bound is usually 4,096.
_BACKLOG = 2048
_CLOSE_S = 0.05
# What was accepted in the same moment as the listening ended becomes a connection within a turn or two of the loop.
_LAST_ARRIVALS_S = 0.1
_log = structlog.get_logger("modelport.api")

Answer = Callable[[Wire], Awaitable[None]]


class Server:
    """`answer` is called for each request, in a task of its own, and answers it whatever happens; `turn_away` in its
    place for those that come while there is more to do than can be answered in time.

    Concurrency: one event loop.
    """

    def __init__(self, answer: Answer, turn_away: Answer, *, settings: ServerSettings, ids: IdSource) -> None:
        self._answer = answer
        self._turn_away = turn_away
        self._flood: Flood | None = None
        self.settings = settings
        self.ids = ids
        self.connections: set[Connection] = set()
        # Connections that were turned away and are still being closed.
        self.leaving = 0
        self._running: set[Wire] = set()
        self._listener: asyncio.Server | None = None
        # Set once it stops: answers are the last of their connections.
        self.stopping = False
        self._quiet = asyncio.Event()
        self._date_s = -1
        self._date_line = b""

    async def start(self, listening: socket.socket) -> None:
        """Accept connections on `listening`, a bound socket."""
        loop = asyncio.get_running_loop()
        self._flood = Flood(self.settings.longest_wait_ms / 1000, loop)
        self._listener = await loop.create_server(lambda: Connection(self, loop), sock=listening, backlog=_BACKLOG)

    async def stop(self) -> None:
        """Accept nothing more and wait for what is in flight, `drain_s` at most; what is left then is cancelled."""
        assert self._listener is not None
        self.stopping = True
        self._listener.close()
        await asyncio.sleep(_LAST_ARRIVALS_S)
        for connection in list(self.connections):
            connection.shutdown()
        try:
            async with asyncio.timeout(self.settings.drain_s):
                # What was set while the last arrivals were awaited may be outdated.
                self._quiet.clear()
                self._check_quiet()
                await self._quiet.wait()
        except TimeoutError:
            left = [wire.task for wire in self._running if wire.task is not None]
            _log.warning("calls_cut_by_stop", calls=len(left))
            for task in left:
                task.cancel()
            await asyncio.gather(*left, return_exceptions=True)
        for connection in list(self.connections):
            connection.cut()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._listener.wait_closed(), _CLOSE_S)

    def run(self, wire: Wire, loop: asyncio.AbstractEventLoop) -> None:
        """Have the request of `wire` answered."""
        self._running.add(wire)
        takes = self._flood is None or self._flood.takes()
        wire.task = loop.create_task(self._run(wire, self._answer if takes else self._turn_away))

    def drop(self, connection: Connection) -> None:
        """A connection was lost."""
        self.connections.discard(connection)
        if self.stopping:
            self._check_quiet()

    async def _run(self, wire: Wire, answer: Answer) -> None:
        """What escapes `answer` is told by the event loop; the client sees its connection closed."""
        try:
            await answer(wire)
        finally:
            wire.break_off()
            wire.task = None
            self._running.discard(wire)
            if self.stopping:
                self._check_quiet()

    def _check_quiet(self) -> None:
        if not self.connections and not self._running:
            self._quiet.set()

    def date_line(self) -> bytes:
        """The `Date` field of an answer (RFC 9110 section 6.6.1), made once a second."""
        now_s = int(time.time())
        if now_s != self._date_s:
            self._date_s = now_s
            self._date_line = b"date: %b\r\n" % formatdate(now_s, usegmt=True).encode()
        return self._date_line
