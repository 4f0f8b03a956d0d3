"""Where the messages of one subscription wait for their reader."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator

# A reader this far behind has lost touch: it is told so, and memory stays bounded (60 kB each at the most).
MAX_WAITING = 1_000


class Inbox:
    """A `Subscription` for one reader. The state fills it with `push` and ends it with `lose`."""

    __slots__ = ("_alive", "_messages", "_wake", "channel")

    def __init__(self, channel: str) -> None:
        self.channel = channel
        self._alive = True
        self._messages: deque[bytes] = deque()
        self._wake = asyncio.Event()

    @property
    def alive(self) -> bool:
        return self._alive

    def push(self, message: bytes) -> None:
        """Hand the reader one more message, or lose it when it is too far behind."""
        if len(self._messages) >= MAX_WAITING:
            self.lose()
        elif self._alive:
            self._messages.append(message)
            self._wake.set()

    def lose(self) -> None:
        """A message may have been missed, or the state is closed: the reader's loop ends now. Idempotent."""
        self._alive = False
        self._messages.clear()
        self._wake.set()

    async def __aiter__(self) -> AsyncIterator[bytes]:
        while self._alive:
            if self._messages:
                yield self._messages.popleft()
            else:
                self._wake.clear()
                await self._wake.wait()
