"""The gateway's side of an engine's socket: connections that are kept, and what they say turned into errors."""

from __future__ import annotations

import asyncio
from collections import deque
from pathlib import Path
from typing import cast

from modelport import errors
from modelport.backends.llamacpp import wire

_IDLE_CONNECTIONS = 32
_RAISED: dict[str, type[errors.ModelportError]] = {
    "BadRequest": errors.BadRequest,
    "ContextTooLong": errors.ContextTooLong,
    "Overloaded": errors.Overloaded,
    "ModelLoading": errors.ModelLoading,
    "CallTimeout": errors.CallTimeout,
    "UpstreamFailed": errors.UpstreamFailed,
}


class Gone(Exception):
    """The engine's process is not there, or went away."""


class Connection(asyncio.Protocol):
    """One connection; one request at a time."""

    __slots__ = ("_frames", "_lost", "_transport", "_waiter", "received")

    def __init__(self) -> None:
        self._frames = wire.Frames()
        self._transport: asyncio.Transport | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._lost = False
        self.received: deque[wire.Message] = deque()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        try:
            self.received.extend(self._frames.feed(data))
        except wire.FrameError:
            self.close()
            self._lost = True
        self._wake()

    def connection_lost(self, exc: Exception | None) -> None:
        self._lost = True
        self._wake()

    def _wake(self) -> None:
        waiter, self._waiter = self._waiter, None
        if waiter is not None and not waiter.done():
            waiter.set_result(None)

    @property
    def usable(self) -> bool:
        return not self._lost and not self.received

    def send(self, message: wire.Message) -> None:
        if self._transport is not None and not self._lost:
            self._transport.write(wire.encode(message))

    async def receive(self) -> wire.Message:
        """The next message. Raises: Gone."""
        while not self.received:
            if self._lost:
                raise Gone
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter
        return self.received.popleft()

    def close(self) -> None:
        """Hang up, which cancels what runs on this connection."""
        if self._transport is not None:
            self._transport.abort()


class Connections:
    """Connections to one engine, some of them kept for the next request."""

    def __init__(self, path: Path) -> None:
        self._path = str(path)
        self._idle: list[Connection] = []

    async def take(self) -> Connection:
        """A connection without a request on it. Raises: Gone when nobody listens."""
        while self._idle:
            connection = self._idle.pop()
            if connection.usable:
                return connection
        try:
            _, made = await asyncio.get_running_loop().create_unix_connection(Connection, self._path)
        except OSError as error:
            raise Gone from error
        return made

    def give_back(self, connection: Connection) -> None:
        """Keep a connection whose request is answered in full."""
        if connection.usable and len(self._idle) < _IDLE_CONNECTIONS:
            self._idle.append(connection)
        else:
            connection.close()

    async def ask(self, message: wire.Message) -> wire.Message:
        """The one answer to a request that has one. Raises: Gone, and what the engine answered as an error."""
        connection = await self.take()
        try:
            connection.send(message)
            answer = await connection.receive()
        except BaseException:
            connection.close()
            raise
        self.give_back(connection)
        if isinstance(answer, wire.Failure):
            raise error_of(answer)
        return answer

    def close(self) -> None:
        while self._idle:
            self._idle.pop().close()


def error_of(failure: wire.Failure) -> errors.ModelportError:
    """The error that the engine's process named."""
    kind = _RAISED.get(failure.code, errors.UpstreamFailed)
    if issubclass(kind, errors.Unavailable):
        return kind(failure.message, retry_after_s=failure.retry_after_s)
    param = "messages" if kind is errors.ContextTooLong else None
    return kind(failure.message, param=param)
