"""One call's part in an answer that more than one call may get: where it comes from, in which form, who pays."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Protocol

from modelport.calls import Call, Delta, Operation, Relay, Usage
from modelport.dialect.recast import Retold, unfold
from modelport.replay.cache.flight import Flight, Listener, Source
from modelport.replay.cache.model import CachedAnswer, Form, Origin, Outcome, Share

# What a listener's outcome says of its answer.
_ORIGINS: dict[Outcome, Origin] = {"HIT": "follower", "MISS": "miss", "BYPASS": "bypass"}


class Ticket(Protocol):
    """What the corridor is given for a call to a model with a cache: to `read`, `leave`, ask the `share`, and `close`;
    or to `decline`.

    `outcome` is what the answer's `x-cache` says. `similarity` is set where another question was answered. `free`:
    the call makes no work, so it reserves no tokens.
    """

    outcome: Outcome
    origin: Origin
    similarity: float | None
    free: bool

    @property
    def costless(self) -> bool:
        """Whether the call will cost nothing, so that it reserves no money either."""
        ...

    def read(self, source: Source) -> AsyncGenerator[Delta]:
        """The answer's pieces, in the form that the call wants; `source` makes one anew, where none is at hand."""
        ...

    def relay(self) -> Relay | None:
        """Where whoever makes the answer may put its pieces once output flows; None: they are pulled."""
        ...

    def listen(self, relay: Relay) -> None:
        """The call's door takes pieces at once from now on, if they have the form that the call wants."""
        ...

    def leave(self) -> bool:
        """The call reads no more. True if the answer that it pays for goes on for others: what it owes is known then
        when that has `landed`. Idempotent."""
        ...

    async def landed(self) -> None:
        """Return when the answer has ended that goes on for others."""
        ...

    def share(self, seen: Usage) -> Share:
        """What the call owes, having `seen` so much."""
        ...

    async def close(self) -> None:
        """Return when nothing is done on this call's account any more. Idempotent."""
        ...

    def spoil(self) -> None:
        """The answer is not what others would get: it is not stored, and nobody else joins."""
        ...

    def decline(self) -> None:
        """The call was not let in: it will neither read nor owe."""
        ...


class Bypass:
    """The answer is made for this call alone, and not stored."""

    outcome: Outcome = "BYPASS"
    origin: Origin = "bypass"
    similarity: float | None = None
    free = False
    costless = False

    def read(self, source: Source) -> AsyncGenerator[Delta]:
        return source()

    def relay(self) -> Relay | None:
        return None

    def listen(self, relay: Relay) -> None:
        """The pieces are pulled."""

    def leave(self) -> bool:
        return False

    async def landed(self) -> None:
        """Nothing goes on."""

    def share(self, seen: Usage) -> Share:
        return Share(seen)

    async def close(self) -> None:
        """Nothing to end."""

    def spoil(self) -> None:
        """Nothing would be stored."""

    def decline(self) -> None:
        """Nothing was begun."""


class Hit:
    """A stored answer."""

    outcome: Outcome = "HIT"
    origin: Origin = "hit"
    free = True

    def __init__(self, call: Call, answer: CachedAnswer, *, price_basis_points: int, similarity: float | None) -> None:
        self._call = call
        self._answer = answer
        self._price_basis_points = price_basis_points
        self.similarity = similarity
        self.costless = not price_basis_points

    def read(self, source: Source) -> AsyncGenerator[Delta]:
        return recast(_stored(self._answer), self._call, self._answer.form)

    def relay(self) -> Relay | None:
        return None

    def listen(self, relay: Relay) -> None:
        """The pieces are pulled."""

    def leave(self) -> bool:
        return False

    async def landed(self) -> None:
        """Nothing goes on."""

    def share(self, seen: Usage) -> Share:
        return Share(seen, self._price_basis_points, free=True)

    async def close(self) -> None:
        """Nothing to end."""

    def spoil(self) -> None:
        """Nothing would be stored."""

    def decline(self) -> None:
        """Nothing was begun."""


class Passenger:
    """A listener on an answer that is on its way. One whose outcome is no hit begins it, and pays for it."""

    similarity: float | None = None

    def __init__(self, call: Call, flight: Flight, *, outcome: Outcome, price_basis_points: int) -> None:
        self._call = call
        self._flight = flight
        self._listener: Listener | None = flight.join()
        self._price_basis_points = price_basis_points
        self.outcome = outcome
        self.free = outcome == "HIT"
        self.costless = self.free and not price_basis_points
        self.origin: Origin = _ORIGINS[outcome]

    def read(self, source: Source) -> AsyncGenerator[Delta]:
        assert self._listener is not None
        if not self.free:
            self._flight.start(source)
        return recast(self._listener.deltas(), self._call, self._flight.form)

    def relay(self) -> Relay | None:
        return None if self.free else self._flight.relay()

    def listen(self, relay: Relay) -> None:
        # Who pays for the whole answer owes what it took; any other owes what it has seen, so it has to see it.
        if self._listener is not None and not self.free and Form.of(self._call) == self._flight.form:
            self._listener.put = relay.put

    def leave(self) -> bool:
        listener, self._listener = self._listener, None
        return listener is not None and self._flight.leave(listener) and not self.free

    async def landed(self) -> None:
        await self._flight.landed()

    def share(self, seen: Usage) -> Share:
        if self.free:
            return Share(seen, self._price_basis_points, free=True)
        return Share(self._flight.usage)

    def spoil(self) -> None:
        self._flight.spoil()

    async def close(self) -> None:
        self.decline()
        await self._flight.stop_if_alone()

    def decline(self) -> None:
        self.leave()
        if not self.free:
            self._flight.give_up()


def recast(deltas: AsyncGenerator[Delta], call: Call, made: Form) -> AsyncGenerator[Delta]:
    """The deltas of an answer in the form `made`, as `call` wants them. What has the right form passes untouched."""
    wanted = Form.of(call)
    if not wanted.stream:
        # A pieces' collector takes what is whole and what is not.
        return deltas
    return _recast(deltas, call, wanted, made)


async def _recast(deltas: AsyncGenerator[Delta], call: Call, wanted: Form, made: Form) -> AsyncGenerator[Delta]:
    generates = call.operation in (Operation.CHAT, Operation.COMPLETION)
    retold = Retold(include_usage=wanted.include_usage) if wanted.include_usage != made.include_usage else None
    usage = Usage()
    try:
        async for delta in deltas:
            usage = delta.usage or usage
            if not generates:
                yield delta
            elif delta.whole:
                yield Delta(unfold(delta.raw, usage, include_usage=wanted.include_usage), usage=delta.usage)
                retold = None
            elif retold is None:
                yield delta
            else:
                yield Delta(retold.events(delta.raw), usage=delta.usage, timed=delta.timed)
        if retold is not None and wanted.include_usage and generates:
            yield Delta(retold.usage(usage), usage=usage, timed=False)
    finally:
        await deltas.aclose()


async def _stored(answer: CachedAnswer) -> AsyncGenerator[Delta]:
    for piece in answer.pieces or [b""]:
        yield Delta(piece, answer.whole, answer.value, answer.usage)
