"""The connections to one upstream: kept, bounded, handed out first come, first served."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections import deque
from collections.abc import Iterable
from urllib.parse import urlsplit

from modelport.backends.transport.connection import Connection, Owner, Timeouts
from modelport.backends.transport.response import Response
from modelport.errors import CallTimeout, Overloaded, UpstreamFailed

# Servers close an idle connection after 5 s (Node) to 75 s (nginx); a stale one costs a retry.
IDLE_S = 30.0
# Calls that wait for a connection, for each connection there may be.
WAITING_PER_CONNECTION = 4
# Weight of the newest turn in the running mean of the time from one turn to the next.
_NEWEST = 0.2
# Closing aborts, so that a turn or two of the event loop is all it takes.
_CLOSE_S = 5.0


def header_block(headers: Iterable[tuple[str, str]]) -> bytes:
    """Header lines for `HttpPool.request`.

    Raises: ValueError for a name or value that would end its line, or is not ASCII.
    """
    lines = []
    for name, value in headers:
        line = f"{name}: {value}"
        if not (line.isascii() and line.isprintable() and name and " " not in name and ":" not in name):
            raise ValueError(f"the header {name!r} can't be sent: names and values are printable ASCII on one line")
        lines.append(line + "\r\n")
    return "".join(lines).encode("ascii")


class HttpPool:
    """HTTP/1.1 to one origin. `base_url` is what every path is appended to.

    Concurrency: for the tasks of one event loop. At most `max_connections` are open; further calls wait in the
    order they came, for as long as they may, and are refused when too many wait already.
    """

    def __init__(
        self,
        name: str,
        base_url: str,
        *,
        max_connections: int,
        max_body_bytes: int,
        tls: ssl.SSLContext | None = None,
        idle_s: float = IDLE_S,
    ) -> None:
        """Raises: ValueError when `base_url` is no http or https address."""
        url = urlsplit(base_url)
        if url.scheme not in ("http", "https") or not url.hostname or url.username or url.query or url.fragment:
            raise ValueError(f"{base_url!r} is no http:// or https:// address (without user, query or fragment)")
        self._name = name
        self._secure = url.scheme == "https"
        self._host = url.hostname
        self._port = url.port or (443 if self._secure else 80)
        self._prefix = url.path.rstrip("/").encode("ascii")
        self._tls = tls
        self._host_line = b" HTTP/1.1\r\nHost: " + url.netloc.encode("idna" if not url.netloc.isascii() else "ascii")
        self._max_connections = max_connections
        self._owner = Owner(name, self._on_idle, self._on_closed, idle_s=idle_s, max_body_bytes=max_body_bytes)
        self._idle: list[Connection] = []
        self._all: set[Connection] = set()
        # Connections there are or are being made; a slot passes from a closed one to the first that waits.
        self._slots = 0
        self._waiting: deque[asyncio.Future[Connection | None]] = deque()
        # How long the line took from one turn to the next, lately; 0 until it is known.
        self._turn_s = 0.0
        self._last_turn_s: float | None = None
        self._closed = False
        self._emptied: asyncio.Event | None = None

    @property
    def open_connections(self) -> int:
        return len(self._all)

    @property
    def idle_connections(self) -> int:
        return len(self._idle)

    @property
    def waiting_calls(self) -> int:
        return len(self._waiting)

    @property
    def wait_s(self) -> float:
        """About how long a call that came now would wait for a connection, judged by the turns of late."""
        return 0.0 if self._slots < self._max_connections or self._idle else self._turn_s * (len(self._waiting) + 1)

    async def request(
        self, method: bytes, path: bytes, *, headers: bytes = b"", body: bytes = b"", timeouts: Timeouts
    ) -> Response:
        """Send a request and return once the answer's head is there. `headers` comes from `header_block`.

        A kept connection that turns out dead before a byte came back is replaced by a fresh one, once.
        Raises: UpstreamFailed, CallTimeout, Overloaded.
        """
        message = b"%b %b%b%b\r\nContent-Length: %d\r\n%b\r\n%b" % (
            method,
            self._prefix,
            path,
            self._host_line,
            len(body),
            headers,
            body,
        )
        connection = self._pick() or await self._open(timeouts)
        head_only = method == b"HEAD"
        try:
            return await self._exchange(connection, message, timeouts, head_only=head_only)
        except UpstreamFailed:
            if connection.heard or not connection.reused:
                raise
        if self._slots >= self._max_connections and self._idle:
            # Its slot comes to the call that waits for it below; the longest idle one is most likely stale too.
            self._idle.pop(0).close()
        connection = await self._open(timeouts)
        return await self._exchange(connection, message, timeouts, head_only=head_only)

    async def aclose(self) -> None:
        """Close every connection; calls under way fail. Idempotent."""
        self._closed = True
        while self._waiting:
            turn = self._waiting.popleft()
            if not turn.done():
                turn.set_exception(self._refusal("is being shut down"))
        self._idle.clear()
        for connection in list(self._all):
            connection.close()
        if self._all:
            self._emptied = asyncio.Event()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._emptied.wait(), _CLOSE_S)

    async def _exchange(
        self, connection: Connection, message: bytes, timeouts: Timeouts, *, head_only: bool
    ) -> Response:
        response = connection.send(message, timeouts, head_only=head_only)
        if not response.done:
            try:
                await response.wait()
            except BaseException:
                connection.close()
                raise
        if response.error is not None and not response.status:
            raise response.error
        return response

    def _pick(self) -> Connection | None:
        """The connection that was idle for the shortest time: it is the least likely to be stale."""
        idle = self._idle
        while idle:
            connection = idle.pop()
            if not connection.lost:
                return connection
        return None

    async def _open(self, timeouts: Timeouts) -> Connection:
        """A fresh connection or, where there are as many as there may be, the next one that comes free."""
        if self._closed:
            raise self._refusal("is being shut down")
        if self._slots < self._max_connections:
            self._slots += 1
        else:
            patience_s = timeouts.connect_s if timeouts.queue_s is None else timeouts.queue_s
            connection = await self._queue(min(patience_s, timeouts.total_s))
            if connection is not None:
                return connection
        try:
            return await self._connect(min(timeouts.connect_s, timeouts.total_s))
        except BaseException:
            self._free_slot()
            raise

    async def _queue(self, patience_s: float) -> Connection | None:
        """Wait in line for a connection, or for the right to open one (None).

        Whoever would wait in vain is told at once: a line that grows without end answers nobody in time.
        """
        if len(self._waiting) >= self._max_connections * WAITING_PER_CONNECTION:
            raise self._refusal("has too many calls waiting", retry_after_s=self.wait_s)
        if self.wait_s > patience_s:
            raise self._refusal(
                "has more calls waiting than it answers in time", retry_after_s=self.wait_s - patience_s
            )
        if not self._waiting:
            self._last_turn_s = None
        turn: asyncio.Future[Connection | None] = asyncio.get_running_loop().create_future()
        self._waiting.append(turn)
        try:
            async with asyncio.timeout(patience_s):
                return await turn
        except BaseException as error:
            if not turn.cancelled() and turn.done() and turn.exception() is None:
                # The turn came in the same moment as the end of the wait: it is the next one's.
                self._pass_on(turn.result())
            elif turn in self._waiting:
                self._waiting.remove(turn)
            if isinstance(error, TimeoutError):
                raise self._refusal("is busy with as many calls as it may have") from None
            raise

    async def _connect(self, patience_s: float) -> Connection:
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(patience_s):
                _, connection = await loop.create_connection(
                    lambda: Connection(self._owner, loop),
                    self._host,
                    self._port,
                    ssl=self._tls_context(),
                    server_hostname=self._host if self._secure else None,
                )
        except TimeoutError as error:
            raise CallTimeout(f"{self._who()} did not take the connection in time", internal=repr(error)) from None
        except ssl.SSLError as error:
            raise UpstreamFailed(f"{self._who()} failed the TLS handshake", internal=str(error)) from None
        except OSError as error:
            where = f"{self._host}:{self._port}"
            raise UpstreamFailed(f"{self._who()} can't be reached", internal=f"{where}: {error}") from None
        if not connection.lost:
            self._all.add(connection)
            return connection
        raise UpstreamFailed(f"{self._who()} closed the connection at once")

    def _tls_context(self) -> ssl.SSLContext | None:
        if not self._secure:
            return None
        if self._tls is None:
            self._tls = ssl.create_default_context()
            self._tls.set_alpn_protocols(["http/1.1"])
        return self._tls

    def _on_idle(self, connection: Connection) -> None:
        if self._closed:
            connection.close()
        else:
            self._pass_on(connection)

    def _on_closed(self, connection: Connection) -> None:
        if connection in self._all:
            self._all.remove(connection)
            if connection in self._idle:
                self._idle.remove(connection)
            self._free_slot()
            if self._emptied is not None and not self._all:
                self._emptied.set()

    def _pass_on(self, connection: Connection | None) -> None:
        """Give a connection, or (None) a slot, to the first that waits; else keep the one and free the other."""
        while self._waiting:
            turn = self._waiting.popleft()
            if not turn.done():
                self._learn_pace()
                turn.set_result(connection)
                return
        if connection is None:
            self._slots -= 1
        elif not connection.lost:
            self._idle.append(connection)

    def _free_slot(self) -> None:
        self._pass_on(None)

    def _learn_pace(self) -> None:
        """A turn was given: how long after the one before it, while there was a line all the time."""
        now_s = asyncio.get_running_loop().time()
        if self._last_turn_s is not None:
            took_s = now_s - self._last_turn_s
            self._turn_s += (took_s - self._turn_s) * _NEWEST if self._turn_s else took_s
        self._last_turn_s = now_s

    def _refusal(self, why: str, *, retry_after_s: float = 1.0) -> Overloaded:
        return Overloaded(f"{self._who()} {why}", retry_after_s=max(retry_after_s, 1.0))

    def _who(self) -> str:
        return f"The model's server {self._name!r}"
