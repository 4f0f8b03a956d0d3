"""Learn at once that a client hung up, without a task that waits for it.

`Connection` is uvicorn's own HTTP/1.1 protocol which tells whoever asked when its connection is lost.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

Receive = Callable[[], Any]


class Connection(HttpToolsProtocol):
    """One client's connection, with a list of those who want to know that it ended."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.on_lost: set[Callable[[], None]] = set()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        waiting, self.on_lost = self.on_lost, set()
        for callback in waiting:
            callback()


_FULL = (
    b"HTTP/1.1 503 Service Unavailable\r\nconnection: close\r\nretry-after: 1\r\n"
    b"content-type: application/problem+json\r\ncontent-length: %d\r\n\r\n%b"
)
_FULL_BODY = (
    b'{"type":"/errors/overloaded","title":"Too many connections","status":503,"detail":"This worker has as many '
    b'connections as it may; come again in a second.","error":{"message":"Too many connections","type":"server_error",'
    b'"code":"overloaded","param":null}}'
)


def connection_class(*, max_connections: int) -> type[Connection]:
    """The protocol for a server that holds at most `max_connections` open at once."""

    class Bounded(Connection):
        def connection_made(self, transport: Any) -> None:
            if len(self.connections) >= max_connections:
                transport.write(_FULL % (len(_FULL_BODY), _FULL_BODY))
                transport.close()
                self.transport = transport
                return
            super().connection_made(transport)

        def data_received(self, data: bytes) -> None:
            if not self.transport.is_closing():
                super().data_received(data)

    return Bounded


class Watch:
    """While open, calls `callback` once when the client of `receive` hangs up."""

    __slots__ = ("_callback", "_connection", "_task")

    def __init__(self, receive: Receive, callback: Callable[[], None]) -> None:
        self._callback = callback
        self._task: asyncio.Task[None] | None = None
        self._connection = connection_of(receive)
        if self._connection is None:
            self._task = asyncio.create_task(self._wait(receive))
        elif self._connection.transport.is_closing():
            callback()
        else:
            self._connection.on_lost.add(callback)

    async def _wait(self, receive: Receive) -> None:
        """The portable way, for servers other than ours: the next ASGI event after the body is the hang-up."""
        while (await receive())["type"] != "http.disconnect":
            pass
        self._callback()

    def close(self) -> None:
        if self._connection is not None:
            self._connection.on_lost.discard(self._callback)
        if self._task is not None:
            self._task.cancel()


def connection_of(receive: Receive) -> Connection | None:
    """Our connection behind uvicorn's `receive`, which is a method of its request cycle; None elsewhere."""
    cycle = getattr(receive, "__self__", None)
    transport = getattr(cycle, "transport", None)
    protocol = transport.get_protocol() if transport is not None else None
    return protocol if isinstance(protocol, Connection) else None
