"""What the platform asks of shared state. Three implementations, one conformance suite.

Everything that a limit needs happens in **one** atomic operation, `take`: many buckets at once, all or nothing.

A *rate* bucket (`window_s > 0`) never lets more than `limit` through in **any** stretch of `window_s` seconds,
however the stretch lies: amounts are kept per sub-window of `window_s / SUB_WINDOWS` seconds, and a sub-window
counts until it lies wholly outside. So nothing bursts twice at a window's edge, memory is bounded, and the price
is that room comes back up to one sub-window late.

A *hold* bucket (`window_s == 0`) counts what is held now: concurrent calls. A hold lives until it is settled or,
when its process died, until `HOLD_TTL_S` after that process last renewed it.

A *fence* is a counter that `take` reads in the same atomic operation: whoever changes something that processes
cache (revokes a key) raises the fence first, so that the very next `take` anywhere shows that a cache is old.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import NamedTuple, Protocol

SUB_WINDOWS = 60
HOLD_TTL_S = 15.0
# Nobody knows when a call ends; a caller refused for want of a hold is told to come back after this.
HOLD_RETRY_S = 1.0
# What fits exactly into the doubles of Redis's Lua with room for a thousand such amounts in one sum.
MAX_AMOUNT = 2**43
MAX_MESSAGE_BYTES = 60_000


class Bucket(NamedTuple):
    """One limit and how much of it this call wants. `name` (`rpm`, `tpm`, `calls`, …) is what answers report.

    What was taken belongs to (`key`, `window_s`), whatever the limit of the take was; one take names a bucket once.
    """

    key: str
    name: str
    limit: int
    window_s: int
    amount: int


@dataclass(slots=True)
class Level:
    """A bucket after a take (or a refusal): what is left now, and in how many seconds all of it is free again.

    For a hold bucket that is in use, `reset_s` is `HOLD_RETRY_S`.
    """

    bucket: Bucket
    remaining: int
    reset_s: float


@dataclass(slots=True)
class Taken:
    """The answer to a take, and the token for settling it.

    `refused` is the index of the first bucket without room, or -1 when everything was taken. `retry_after_s` is
    when the refused buckets will have room for these amounts if nothing else comes, or None when an amount is
    larger than its limit and never fits. A refused hold bucket counts for `HOLD_RETRY_S` there. `at_us` is the
    instant it was taken (the state's clock).

    `fence` is the fence's value, 0 where none was asked for. Compare it for **difference**: a state that lost its
    memory starts a fence anew, at a value that it never had before.
    `marks` and `settled` are the state's own.
    """

    id: str
    levels: list[Level]
    refused: int
    retry_after_s: float | None
    at_us: int
    fence: int
    marks: Sequence[int] = ()
    settled: bool = False

    @property
    def allowed(self) -> bool:
        return self.refused < 0


class Subscription(Protocol):
    """Messages of one channel, in order. `alive` turns false the moment a message may have been missed.

    The iterator ends then as well; whoever still wants messages forgets what it derived from them and subscribes
    again.
    """

    @property
    def alive(self) -> bool: ...

    def __aiter__(self) -> AsyncIterator[bytes]: ...


class State(Protocol):
    """Raises `StateUnavailable` when the state can't be reached; never lets a call through because of that."""

    async def start(self) -> None:
        """Open files and connections. Call once, before anything else.

        Raises nothing for a server that can't be reached yet: `ping` tells, and it is tried again and again.
        """
        ...

    async def close(self) -> None: ...

    async def ping(self) -> None:
        """Return when the state answers. Raises: StateUnavailable."""
        ...

    async def take(self, id: str, buckets: Sequence[Bucket], *, fence: str = "") -> Taken:
        """Take every bucket's amount, or none. `id` names the taker (the call id); `fence` a fence to read.

        Cancelled while it waits for the answer, it gives back what was taken.
        Raises: StateUnavailable (what may have been taken then is given back or ages out); ValueError for a
        negative amount or a bucket named twice.
        """
        ...

    async def settle(self, taken: Taken, amounts: Sequence[int]) -> None:
        """Correct what was taken to `amounts` (same order as the buckets) and release the holds.

        Settling twice, or after the window has passed, changes nothing. An amount above the one taken is
        counted as well: the work was done. An amount above `MAX_AMOUNT` counts as that.
        Raises: StateUnavailable; the holds are released all the same once the state is back, and what could not
        be given back of the rates ages out.
        """
        ...

    async def peek(self, buckets: Sequence[Bucket]) -> list[Level]:
        """Each bucket's level now; amounts are ignored and nothing is taken."""
        ...

    async def raise_fence(self, name: str) -> int:
        """Raise the fence by one and return its new value; every later `take` sees it."""
        ...

    async def get(self, key: str) -> bytes | None: ...

    async def set(self, key: str, value: bytes, *, ttl_s: float) -> None: ...

    async def add(self, key: str, value: bytes, *, ttl_s: float) -> bool:
        """Store `value` unless the key holds one that has not expired; true when it was stored."""
        ...

    async def delete(self, key: str) -> None: ...

    async def lease(self, key: str, owner: str, *, ttl_s: float) -> bool:
        """Acquire or renew; true while `owner` holds it. One owner at a time."""
        ...

    async def release(self, key: str, owner: str) -> None:
        """Give the lease back if `owner` still holds it."""
        ...

    async def publish(self, channel: str, message: bytes) -> None:
        """Hand `message` to every live subscription of every process.

        Raises: StateUnavailable; ValueError when it is longer than `MAX_MESSAGE_BYTES`.
        """
        ...

    def subscribe(self, channel: str) -> AbstractAsyncContextManager[Subscription]:
        """Messages published from the moment the context is entered. Entering raises: StateUnavailable."""
        ...
