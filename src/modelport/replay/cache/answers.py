"""Where answers are stored: this process's memory, or the state that instances share. Two stores, one test."""

from __future__ import annotations

from collections import OrderedDict
from typing import Protocol

from modelport.errors import StateUnavailable
from modelport.kit.clock import Clock
from modelport.state.protocol import State

# What an entry takes up beside its bytes: two objects, the key, and its place in the order.
ENTRY_BYTES = 400


class AnswerStore(Protocol):
    """Bytes by key that are gone after a time, or earlier where room is needed. Never raises: a store that is away
    has nothing."""

    @property
    def shared(self) -> bool:
        """Whether other processes see what is put here."""
        ...

    @property
    def held_bytes(self) -> int:
        """What it takes up in this process."""
        ...

    async def get(self, key: str) -> bytes | None: ...

    async def put(self, key: str, value: bytes, *, ttl_s: float) -> None: ...


class MemoryAnswers:
    """The least recently used answers give way once `max_bytes` are held."""

    shared = False

    def __init__(self, clock: Clock, *, max_bytes: int) -> None:
        self._clock = clock
        self._max_bytes = max_bytes
        self._entries: OrderedDict[str, tuple[bytes, float]] = OrderedDict()
        self._held_bytes = 0

    @property
    def held_bytes(self) -> int:
        return self._held_bytes

    async def get(self, key: str) -> bytes | None:
        entry = self._entries.get(key)
        if entry is None:
            return None
        value, expires_s = entry
        if expires_s <= self._clock.monotonic_s():
            self._drop(key)
            return None
        self._entries.move_to_end(key)
        return value

    async def put(self, key: str, value: bytes, *, ttl_s: float) -> None:
        self._drop(key)
        size_bytes = len(value) + ENTRY_BYTES
        if size_bytes > self._max_bytes:
            return
        while self._held_bytes + size_bytes > self._max_bytes:
            self._drop(next(iter(self._entries)))
        self._entries[key] = (value, self._clock.monotonic_s() + ttl_s)
        self._held_bytes += size_bytes

    def _drop(self, key: str) -> None:
        entry = self._entries.pop(key, None)
        if entry is not None:
            self._held_bytes -= len(entry[0]) + ENTRY_BYTES


class SharedAnswers:
    """In Redis, for every instance at once; Redis itself bounds its memory (`maxmemory`), and times do."""

    shared = True
    held_bytes = 0

    def __init__(self, state: State) -> None:
        self._state = state

    async def get(self, key: str) -> bytes | None:
        try:
            return await self._state.get(f"answer:{key}")
        except StateUnavailable:
            return None

    async def put(self, key: str, value: bytes, *, ttl_s: float) -> None:
        try:
            await self._state.set(f"answer:{key}", value, ttl_s=ttl_s)
        except StateUnavailable:
            return
