"""Wait for what a test waits for, instead of sleeping and hoping."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable

_POLL_S = 0.01


async def wait_until(predicate: Callable[[], bool | Awaitable[bool]], what: str, *, timeout_s: float = 30.0) -> None:
    """Return once `predicate` holds; fail with `what` when it does not within `timeout_s`."""
    give_up = time.monotonic() + timeout_s
    while True:
        answer = predicate()
        if answer if isinstance(answer, bool) else await answer:
            return
        if time.monotonic() > give_up:
            raise AssertionError(f"waited {timeout_s} s in vain until {what}")
        await asyncio.sleep(_POLL_S)
