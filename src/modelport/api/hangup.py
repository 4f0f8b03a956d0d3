"""Learn at once that a client hung up, without a task that waits for it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from modelport.api.connection import Connection

Receive = Callable[[], Any]


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
            # A body larger than what is held at once has stopped the reading.
            self._connection.listen()

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
