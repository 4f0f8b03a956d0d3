"""One answer on its way in: what the connection has received and the caller has not yet taken."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Protocol

from modelport.errors import ModelportError
from modelport.kit.gathering import Gathering


class Source(Protocol):
    """What a response asks of the connection that it arrives on."""

    def resume(self) -> None: ...

    def abandon(self) -> None: ...

    def drain(self) -> None: ...

    def fail_too_large(self) -> None: ...

    @property
    def gathering(self) -> Gathering: ...

    def new_future(self) -> asyncio.Future[None]:
        """A future of the connection's loop, which is not asked for each time: that costs a system call."""
        ...


class Response:
    """Status and headers are there from the start; the body is taken with `read` or piece by piece with `receive`.

    Whoever has one must end with `close` (or `release`), however it went: until then the connection is taken.
    """

    __slots__ = (
        "awaited",
        "buffered_bytes",
        "chunks",
        "consumer",
        "done",
        "error",
        "headers",
        "held",
        "limit_bytes",
        "received_bytes",
        "released",
        "source",
        "status",
        "waiter",
        "whole",
    )

    def __init__(self, source: Source, *, limit_bytes: int) -> None:
        self.source = source
        self.status = 0
        self.headers: list[tuple[bytes, bytes]] = []
        self.chunks: list[bytes] = []
        self.buffered_bytes = 0
        self.received_bytes = 0
        self.limit_bytes = limit_bytes
        self.done = False
        self.released = False
        self.error: ModelportError | None = None
        self.waiter: asyncio.Future[None] | None = None
        # Set while what arrives is handed on at once; see `flow`.
        self.consumer: Callable[[bytes], bool] | None = None
        self.held = False
        # Set while the caller waits for the complete body, so that it is woken once and not for each piece.
        self.whole = False
        # Set by the caller while what it waits for has not come, whatever else has: the time for the head goes on.
        self.awaited = False

    def header(self, name: bytes) -> bytes | None:
        """The first header of that name (in lower case), or None."""
        for found, value in self.headers:
            if found.lower() == name:
                return value
        return None

    async def read(self, *, limit_bytes: int | None = None) -> bytes:
        """The whole body, or what is left of it.

        Raises: UpstreamFailed when it is larger than `limit_bytes`, was cut or is no HTTP; CallTimeout.
        """
        if limit_bytes is not None and limit_bytes < self.limit_bytes:
            self.limit_bytes = limit_bytes
            if self.received_bytes > limit_bytes:
                self.source.fail_too_large()
        if not self.done:
            self.whole = True
            self.source.resume()
            await self.wait()
        if self.error is not None:
            raise self.error
        chunks, self.chunks = self.chunks, []
        return chunks[0] if len(chunks) == 1 else b"".join(chunks)

    async def receive(self) -> bytes:
        """The bytes that came since the last call, waiting for the first; empty at the end of the body.

        Raises: UpstreamFailed, CallTimeout, after everything that did arrive was handed out.
        """
        chunks = self.chunks
        if not chunks:
            if not self.done:
                await self.wait()
            if not chunks:
                if self.error is not None:
                    raise self.error
                return b""
        data = chunks[0] if len(chunks) == 1 else b"".join(chunks)
        chunks.clear()
        self.buffered_bytes = 0
        if not self.done:
            self.source.resume()
        return data

    @property
    def idle(self) -> bool:
        """Whether all that arrived was taken, and more is to come."""
        return not (self.chunks or self.done)

    async def flow(self, consumer: Callable[[bytes], bool]) -> None:
        """Hand bytes to `consumer` as they arrive, without waking this task for each, until it returns false or the
        body ends. What it was not given `receive` has. For a response that is idle."""
        self.consumer = consumer
        gathering = self.source.gathering
        gathering.join()
        try:
            while self.consumer is not None and not self.done:
                await self.wait()
        finally:
            self.consumer = None
            gathering.leave()

    def deliver(self) -> bool:
        """Called by the connection: hand on what has come; false when nobody takes it, or no more."""
        consumer, chunks = self.consumer, self.chunks
        if consumer is None:
            return False
        data = chunks[0] if len(chunks) == 1 else b"".join(chunks)
        chunks.clear()
        self.buffered_bytes = 0
        if data and not consumer(data):
            self.consumer = None
            return False
        return True

    def release_held(self) -> None:
        """Hand on what was held back for a moment."""
        self.held = False
        if self.consumer is not None and not self.deliver():
            self.wake()

    def close(self) -> None:
        """Done with it. A body that has not ended is hung up on, which the upstream sees at once. Idempotent, and
        without effect after `release`."""
        if not (self.done or self.released):
            self.source.abandon()

    def release(self) -> None:
        """Done with it, and the body is all but over: its rest is read and dropped, so that the connection can be
        kept. One that doesn't end soon is hung up on."""
        if not (self.done or self.released):
            self.released = True
            self.source.drain()

    def wake(self) -> None:
        """Called by the connection: there is something to take."""
        waiter = self.waiter
        if waiter is not None and not waiter.done():
            waiter.set_result(None)

    async def wait(self) -> None:
        """Return at the next `wake`; the caller looks what it was."""
        self.waiter = self.source.new_future()
        try:
            await self.waiter
        finally:
            self.waiter = None
