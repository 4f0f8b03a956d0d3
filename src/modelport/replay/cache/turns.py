"""Whose turn it is to make an answer, among instances that share stored answers: a lease, and waiting for its holder.

It only spares work. Where the state is away, or the wait gets long, the answer is made here as well.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections.abc import Awaitable, Callable
from typing import TypeVar

from modelport.errors import StateUnavailable
from modelport.kit.clock import Clock
from modelport.state.protocol import State

T = TypeVar("T")

# An instance that died holds a turn for so long. Longer answers may be made twice, which is no harm.
LEASE_S = 30.0
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.01, 0.2


class Turns:
    """This process's part in it. Concurrency: any number of tasks, of which one at a time wants a key's turn."""

    def __init__(self, state: State, *, clock: Clock, wait_s: float) -> None:
        self._state = state
        self._clock = clock
        self._wait_s = wait_s
        self._owner = secrets.token_hex(8)

    async def take(self, key: str, *, look: Callable[[], Awaitable[T | None]]) -> T | None:
        """None when this process is to make the answer; else what `look` found once another instance had made it."""
        give_up_s = self._clock.monotonic_s() + self._wait_s
        pause_s = _FIRST_PAUSE_S
        while True:
            try:
                if await self._state.lease(f"answer:{key}", self._owner, ttl_s=LEASE_S):
                    # Its holder may have stored the answer between our look and the end of its turn.
                    found = await look()
                    if found is not None:
                        await self.give_back(key)
                    return found
            except StateUnavailable:
                return None
            if self._clock.monotonic_s() >= give_up_s:
                return None
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)
            found = await look()
            if found is not None:
                return found

    async def give_back(self, key: str) -> None:
        """The answer is made, or will not be: it is the next one's turn."""
        with contextlib.suppress(StateUnavailable):
            await self._state.release(f"answer:{key}", self._owner)
