"""What the platform asks of shared state. Three implementations, one conformance suite.

Everything that a limit needs happens in **one** atomic operation, `take`: many buckets at once, all or nothing.

A *rate* bucket (`window_s > 0`) never lets more than `limit` through in **any** stretch of `window_s` seconds,
however the stretch lies: amounts are kept per sub-window of `window_s / SUB_WINDOWS` seconds, and a sub-window
counts until it lies wholly outside. So nothing bursts twice at a window's edge, memory is bounded, and the price
is that room comes back up to one sub-window late.

A *hold* bucket (`window_s == 0`) counts what is held now: concurrent calls. A hold lives until it is settled or,
when its process died, until `HOLD_TTL_S` after that process last renewed it.

A *purse* bucket (`window_s == PURSE`) is money: what was `spent`, which never comes back, and what calls that run now
`held` at their worst case. It passes when both and the amount are within the limit; settling releases the hold and
adds the cost to what was spent, in one step. The state's memory is not where money is kept: a purse that it does not
know (a new one, or all of them after a loss) answers *unseeded* until `raise_spent` says what was spent before, by
the durable record. Decision: docs/decisions/0011-budgets.md.

A *fence* is a counter that `take` reads in the same atomic operation: whoever changes something that processes
cache (revokes a key) raises the fence first, so that the very next `take` anywhere shows that a cache is old.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from typing import NamedTuple, Protocol

import msgspec

SUB_WINDOWS = 60
HOLD_TTL_S = 15.0
# Nobody knows when a call ends; a caller refused for want of a hold is told to come back after this.
HOLD_RETRY_S = 1.0
# What fits exactly into the doubles of Redis's Lua with room for a thousand such amounts in one sum.
MAX_AMOUNT = 2**43
# What a purse's spending may add up to: with an amount on top it is still exact in a double. 4.5 million dollars.
MAX_SPENT = 2**52
MAX_MESSAGE_BYTES = 60_000
# The `window_s` of a purse: no stretch of time at all.
PURSE = -1
# A purse that nobody used for this long is forgotten, and asked for again when it is needed.
PURSE_TTL_S = 86_400


class Bucket(NamedTuple):
    """One limit and how much of it this call wants. `name` (`rpm`, `tpm`, `calls`, …) is what answers report.

    What was taken belongs to (`key`, `window_s`), whatever the limit of the take was; one take names a bucket once.
    """

    key: str
    name: str
    limit: int
    window_s: int
    amount: int


class Level(msgspec.Struct, gc=False):
    """A bucket after a take (or a refusal): what is left now, and in how many seconds all of it is free again.

    For a hold bucket that is in use, `reset_s` is `HOLD_RETRY_S`.
    """

    bucket: Bucket
    remaining: int
    reset_s: float


class PurseLevel(Level, gc=False):
    """A purse: `remaining` is the limit less both. `spent` is None where the state does not know the purse."""

    spent: int | None = None
    held: int = 0


class Taken(msgspec.Struct, gc=False):
    """The answer to a take, and the token for settling it.

    `refused` is the index of the first bucket without room, or -1 when everything was taken. `retry_after_s` is
    when the refused buckets will have room for these amounts if nothing else comes, or None when an amount is
    larger than its limit and never fits. A refused hold bucket counts for `HOLD_RETRY_S` there. `at_us` is the
    instant it was taken (the state's clock). A refused purse will have room when calls that hold it have ended
    (`HOLD_RETRY_S`), or never, where what was spent leaves too little.

    When a purse is unseeded nothing was taken, and the first such is the refused one; its level's `spent` is None.

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

        What a purse's call cost is spent from now on, also when this fails: it is then held until `recorded`.
        Settling twice, or after the window has passed, changes nothing. An amount above the one taken is
        counted as well: the work was done. An amount above `MAX_AMOUNT` counts as that.
        Raises: StateUnavailable; the holds are released all the same once the state is back, and what could not
        be given back of the rates ages out.
        """
        ...

    async def peek(self, buckets: Sequence[Bucket]) -> list[Level]:
        """Each bucket's level now; amounts are ignored and nothing is taken."""
        ...

    async def raise_spent(self, spent: Mapping[str, int]) -> None:
        """Of each of these purses (by key) at least so much was spent, the durable record says.

        Seeds the ones that the state does not know, and never lowers one. Settle a call only after its cost was
        handed to the record: then a purse is never below the record, and the larger of the two is the truth.
        """
        ...

    async def recorded(self) -> None:
        """All that was settled before the *last* call of this is in the durable record, and `raise_spent` was called
        with it since: it needs not be held for a state that may have lost it. Call every few seconds."""
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
