"""Take a call's place in every limit before it runs, and correct it to what was used when it has ended."""

from __future__ import annotations

from collections.abc import Awaitable, Sequence

from modelport.calls import Caller
from modelport.limits import rules
from modelport.state.protocol import Bucket, Level, State, Taken

# Callers whose buckets are remembered; one that is dropped is only written out again.
_MAX_CALLERS = 10_000
# The fence that key rings compare (access announces every change of a key with it).
_FENCE = "keys"


class Reservation:
    """A call's place in the limits. `levels` is what was left when it was taken; `fence` the fence `keys` then."""

    __slots__ = ("taken",)

    def __init__(self, taken: Taken) -> None:
        self.taken = taken

    @property
    def levels(self) -> list[Level]:
        return self.taken.levels

    @property
    def fence(self) -> int:
        return self.taken.fence


class Limiter:
    """Concurrency: any number of tasks; exact across all processes that share the state."""

    def __init__(self, state: State, *, management_per_minute: int) -> None:
        self._state = state
        self._management_per_minute = management_per_minute
        self._buckets: dict[str, tuple[Caller, rules.Buckets]] = {}

    def reserve(self, call_id: str, caller: Caller, *, tokens: int) -> Awaitable[Reservation]:
        """Take a request, `tokens` and a concurrent call from the organization and the key, or nothing at all.

        Raises: LimitExceeded (kind `requests`, `tokens` or `concurrency`; `levels` filled); StateUnavailable.
        """
        return self._take(call_id, self._buckets_of(caller, tokens))

    async def take(self, call_id: str, caller: Caller, beside: Sequence[Bucket], *, tokens: int) -> Taken:
        """The caller's limits and then the buckets `beside` them, in one operation; whoever asks reads the answer.

        Raises: StateUnavailable.
        """
        return await self._state.take(call_id, [*self._buckets_of(caller, tokens), *beside], fence=_FENCE)

    async def reserve_management(self, call_id: str, caller: Caller) -> Reservation:
        """Count one call to the management API; it needs no settling. Raises: LimitExceeded, StateUnavailable."""
        return await self._take(call_id, rules.management_buckets(caller, per_minute=self._management_per_minute))

    async def settle(self, reservation: Reservation, *, tokens: int) -> None:
        """Correct the reservation to `tokens` and end the concurrent call. Idempotent.

        Tokens above the ones reserved are counted as well. Raises: StateUnavailable.
        """
        taken = reservation.taken
        if taken.levels:
            await self._state.settle(taken, rules.settled_amounts(taken.levels, tokens=tokens))

    async def release(self, reservation: Reservation) -> None:
        """Give everything back, as if it had never been taken. Idempotent. Raises: StateUnavailable."""
        taken = reservation.taken
        await self.correct(taken, [0] * len(taken.levels))

    async def correct(self, taken: Taken, amounts: Sequence[int]) -> None:
        """Correct what was taken to `amounts`, in the order of its buckets. Idempotent. Raises: StateUnavailable."""
        await self._state.settle(taken, amounts)

    async def levels(self, caller: Caller) -> list[Level]:
        """What is left of each of the caller's limits now; nothing is taken. Raises: StateUnavailable."""
        return await self._state.peek(rules.Buckets(caller).of(0))

    def _buckets_of(self, caller: Caller, tokens: int) -> Sequence[Bucket]:
        """The buckets of a caller, whose limits are the same until the key ring reads it anew."""
        known = self._buckets.get(caller.key_id)
        if known is None or known[0] is not caller:
            if len(self._buckets) >= _MAX_CALLERS:
                self._buckets.clear()
            known = self._buckets[caller.key_id] = (caller, rules.Buckets(caller))
        return known[1].of(tokens)

    async def _take(self, call_id: str, buckets: Sequence[Bucket]) -> Reservation:
        taken = await self._state.take(call_id, buckets, fence=_FENCE)
        if taken.refused >= 0:
            raise rules.refusal(taken)
        return Reservation(taken)
