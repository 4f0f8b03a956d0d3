"""An answer on its way, and everybody who asked for it: one upstream call, however many ask the same at once.

The answer is pulled by a task of its own, so whoever began it may leave without taking it from the others. It goes on
while anybody listens, and stops at once when nobody does. Who began it pays for all of it, however long it listened:
it is the one that reserved for it, and two equal calls, of which the first is dropped at once, are no way not to pay.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable

from modelport.calls import Delta, Relay, Usage
from modelport.replay.cache.model import Form

Source = Callable[[], AsyncGenerator[Delta]]


class Flight:
    """Concurrency: any number of tasks of one event loop.

    `form` is that of the call that begins it. `most_bytes` bounds what is held: an answer that is longer takes no more
    listeners, is not stored, and comes no faster than its slowest listener reads. `store` is called with a flight that
    ended, `land` when nobody may join it any more.
    """

    def __init__(
        self,
        form: Form,
        *,
        most_bytes: int,
        store: Callable[[Flight], Awaitable[None]],
        land: Callable[[Flight], None],
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        self.form = form
        self._most_bytes = most_bytes
        self._store = store
        self._land = land
        self._task: asyncio.Task[None] | None = None
        self._listeners: list[Listener] = []
        self._loop = loop
        # Whether it was begun, None until that is decided; and what those wait for who want to know.
        self._begun: bool | None = None
        self._decided: asyncio.Future[bool] | None = None
        self._room: asyncio.Event | None = None
        self._relay: Relay | None = None
        self._held_bytes = 0
        # The first of `deltas` is this one of the answer.
        self.offset = 0
        self.deltas: list[Delta] = []
        self._usage = Usage()
        self.over = False
        self.stopped = False
        self.too_large = False
        self.spoilt = False
        self.failure: BaseException | None = None

    @property
    def usage(self) -> Usage:
        """What the answer took so far."""
        relay = self._relay
        return self._usage if relay is None or relay.count is None else relay.count()

    @property
    def complete(self) -> bool:
        """Whether the whole answer is here, from its first piece to its good end."""
        return self.over and self.failure is None and not (self.too_large or self.stopped or self.spoilt)

    @property
    def boarding(self) -> bool:
        """Whether it can be joined: its first piece is still here, and it is an answer that others would get."""
        return not (self.too_large or self.stopped or self.spoilt or self.failure is not None)

    async def launched(self) -> bool:
        """True once the answer is on its way; false when who was to begin it could not."""
        if self._begun is not None:
            return self._begun
        if self._decided is None:
            self._decided = self._loop.create_future()
        return await asyncio.shield(self._decided)

    async def landed(self) -> None:
        """Return when the answer has ended, or was stopped."""
        if self._task is not None:
            await asyncio.wait((self._task,))

    def start(self, source: Source) -> None:
        """Begin the answer."""
        self._decide(True)
        self._task = self._loop.create_task(self._pull(source()))

    def give_up(self) -> None:
        """The answer will not be begun; those who wait for it are told."""
        if self._begun is None:
            self._decide(False)
            self._land(self)

    def _decide(self, begun: bool) -> None:
        self._begun = begun
        if self._decided is not None:
            self._decided.set_result(begun)

    def relay(self) -> Relay:
        """Where whoever makes the answer may put its pieces, instead of having each of them pulled."""
        if self._relay is None:
            self._relay = Relay(self._push)
        return self._relay

    def _push(self, raw: bytes) -> bool:
        if self.too_large:
            # Its maker must be held back when nobody reads.
            return False
        self._add(Delta(raw))
        return True

    def new_waiter(self) -> asyncio.Future[None]:
        return self._loop.create_future()

    def spoil(self) -> None:
        """This answer is for those alone who listen by now."""
        self.spoilt = True

    def join(self) -> Listener:
        """Another listener, from the first piece on."""
        listener = Listener(self)
        self._listeners.append(listener)
        return listener

    def leave(self, listener: Listener) -> bool:
        """The listener has what it wants, or gives up; true if the answer goes on for others. To be followed by
        `stop_if_alone`."""
        self._listeners.remove(listener)
        goes_on = bool(self._listeners) and not self.over
        self.stopped = self.stopped or not (self._listeners or self.over)
        return goes_on

    async def stop_if_alone(self) -> None:
        """Return when the upstream has stopped, if nobody listens any more."""
        if self.stopped and self._task is not None:
            self._task.cancel()
            await self.landed()

    async def _pull(self, source: AsyncGenerator[Delta]) -> None:
        try:
            async for delta in source:
                self._add(delta)
                while self._held_bytes > self._most_bytes:
                    self._room = asyncio.Event()
                    await self._room.wait()
        except BaseException as error:  # noqa: BLE001  The listeners raise it, in their own calls, where it is handled.
            self.failure = error
        finally:
            # The relay and this hold each other.
            self._usage, self._relay = self.usage, None
            self.over = True
            self._wake()
            await source.aclose()
            await self._store(self)
            self._land(self)

    def _add(self, delta: Delta) -> None:
        if delta.usage is not None:
            self._usage = delta.usage
        self.deltas.append(delta)
        self._held_bytes += len(delta.raw)
        if self._held_bytes > self._most_bytes:
            self.too_large = True
            self.forget_read()
        self._wake()

    def forget_read(self) -> None:
        """Of an answer that is too large, drop what everybody has read."""
        if not self.too_large:
            return
        read = min((listener.place for listener in self._listeners), default=self.offset + len(self.deltas))
        for delta in self.deltas[: read - self.offset]:
            self._held_bytes -= len(delta.raw)
        del self.deltas[: read - self.offset]
        self.offset = max(read, self.offset)
        if self._room is not None:
            self._room.set()

    def _wake(self) -> None:
        for listener in self._listeners:
            listener.tell()


class Listener:
    """One call's ear on an answer. `place` is the number of the delta that it reads next.

    `put` takes pieces at once while the listener has nothing else to read, so that its task sleeps on.
    """

    __slots__ = ("_waiter", "flight", "place", "put")

    def __init__(self, flight: Flight) -> None:
        self.flight = flight
        self._waiter: asyncio.Future[None] | None = None
        self.place = 0
        self.put: Callable[[bytes], bool] | None = None

    def tell(self) -> None:
        """Called by the flight: something has come, or it is over."""
        waiter, flight = self._waiter, self.flight
        if waiter is None or waiter.done():
            return
        if self.put is not None and not flight.over and self.place == flight.offset + len(flight.deltas) - 1:
            delta = flight.deltas[-1]
            # What tells the usage may be the end of the answer, and is seen to by the call.
            if delta.usage is None and self.put(delta.raw):
                self.place += 1
                return
        waiter.set_result(None)

    async def deltas(self) -> AsyncGenerator[Delta]:
        """The answer's pieces as they come. Raises: whatever the answer ended with."""
        flight = self.flight
        while True:
            while self.place < flight.offset + len(flight.deltas):
                delta = flight.deltas[self.place - flight.offset]
                self.place += 1
                yield delta
                flight.forget_read()
            if flight.over:
                if flight.failure is not None:
                    raise flight.failure.with_traceback(None)
                return
            self._waiter = flight.new_waiter()
            try:
                await self._waiter
            finally:
                self._waiter = None
