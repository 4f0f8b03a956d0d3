"""State of one process, in its memory. Gone when the process is, and exact as long as it is the only one."""

from __future__ import annotations

import heapq
from collections import OrderedDict
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager

from modelport.errors import StateUnavailable
from modelport.kit.clock import Clock
from modelport.state.inbox import Inbox
from modelport.state.protocol import MAX_MESSAGE_BYTES, Bucket, Level, Subscription, Taken
from modelport.state.purses import Purses
from modelport.state.windows import SLOTS, Holds, Meter, Window, changes, check, level, take_all

# Values that have not expired. More are refused, since dropping one could answer an idempotent request twice.
MAX_VALUES = 1_000_000


class MemoryState:
    """`State` for one worker. Every operation is done when it is called, without a pause of the event loop."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        # Time as it passes, whatever happens to the wall clock: nobody else shares these windows.
        self._offset_us = clock.now_us() - round(clock.monotonic_s() * 1_000_000)
        self._rates: dict[int, _Family] = {}
        self._holds: dict[str, Holds] = {}
        self._purses = Purses()
        self._fences: dict[str, int] = {}
        self._values = _Values()
        self._inboxes: dict[str, set[Inbox]] = {}
        self._closed = False

    async def start(self) -> None:
        self._closed = False

    async def close(self) -> None:
        """End every subscription; operations raise `StateUnavailable` from now on."""
        self._closed = True
        for inboxes in self._inboxes.values():
            for inbox in inboxes:
                inbox.lose()

    async def ping(self) -> None:
        self._now_us()

    async def take(self, id: str, buckets: Sequence[Bucket], *, fence: str = "") -> Taken:
        now_us = self._now_us()
        check(buckets)
        meters = [self._meter(bucket, now_us) for bucket in buckets]
        taken = take_all(id, buckets, meters, now_us=now_us, fence=self._fence(fence, now_us) if fence else 0)
        if taken.refused < 0:
            for bucket, meter in zip(buckets, meters, strict=True):
                if type(meter) is Holds and bucket.amount:
                    self._holds[bucket.key] = meter
        return taken

    async def settle(self, taken: Taken, amounts: Sequence[int]) -> None:
        now_us = self._now_us()
        for bucket, mark, change in changes(taken, amounts):
            if bucket.window_s > 0:
                window = self._rates[bucket.window_s].find(bucket.key)
                if window is not None:
                    window.correct(mark, change)
            elif bucket.window_s:
                self._purses.reach(bucket.key, now_us).settle(release=change, charge=mark)
            else:
                held = self._holds[bucket.key]
                held.total += change
                if not held.total:
                    del self._holds[bucket.key]

    async def peek(self, buckets: Sequence[Bucket]) -> list[Level]:
        now_us = self._now_us()
        meters = [self._meter(bucket, now_us) for bucket in buckets]
        return [level(bucket, meter, now_us) for bucket, meter in zip(buckets, meters, strict=True)]

    async def raise_spent(self, spent: Mapping[str, int]) -> None:
        now_us = self._now_us()
        for key, amount in spent.items():
            purse = self._purses.reach(key, now_us)
            purse.spent = max(purse.spent or 0, amount)

    async def recorded(self) -> None:
        """Nothing to do: this memory is lost together with the process that it is in."""

    async def raise_fence(self, name: str) -> int:
        now_us = self._now_us()
        value = max(self._fences.get(name, 0) + 1, now_us)
        self._fences[name] = value
        return value

    async def get(self, key: str) -> bytes | None:
        return self._values.find("value:" + key, self._now_us())

    async def set(self, key: str, value: bytes, *, ttl_s: float) -> None:
        now_us = self._now_us()
        self._values.put("value:" + key, value, now_us=now_us, ttl_s=ttl_s)

    async def add(self, key: str, value: bytes, *, ttl_s: float) -> bool:
        now_us = self._now_us()
        if self._values.find("value:" + key, now_us) is not None:
            return False
        self._values.put("value:" + key, value, now_us=now_us, ttl_s=ttl_s)
        return True

    async def delete(self, key: str) -> None:
        self._now_us()
        self._values.drop("value:" + key)

    async def lease(self, key: str, owner: str, *, ttl_s: float) -> bool:
        now_us = self._now_us()
        holder = self._values.find("lease:" + key, now_us)
        if holder is not None and holder != owner.encode():
            return False
        self._values.put("lease:" + key, owner.encode(), now_us=now_us, ttl_s=ttl_s)
        return True

    async def release(self, key: str, owner: str) -> None:
        if self._values.find("lease:" + key, self._now_us()) == owner.encode():
            self._values.drop("lease:" + key)

    async def publish(self, channel: str, message: bytes) -> None:
        self._now_us()
        if len(message) > MAX_MESSAGE_BYTES:
            raise ValueError(f"a message has at most {MAX_MESSAGE_BYTES} bytes")
        for inbox in self._inboxes.get(channel, ()):
            inbox.push(message)

    @asynccontextmanager
    async def subscribe(self, channel: str) -> AsyncIterator[Subscription]:
        self._now_us()
        inbox = Inbox(channel)
        inboxes = self._inboxes.setdefault(channel, set())
        inboxes.add(inbox)
        try:
            yield inbox
        finally:
            inbox.lose()
            inboxes.discard(inbox)
            if not inboxes:
                self._inboxes.pop(channel, None)

    def _now_us(self) -> int:
        if self._closed:
            raise StateUnavailable(internal="the state is closed")
        return self._offset_us + round(self._clock.monotonic_s() * 1_000_000)

    def _meter(self, bucket: Bucket, now_us: int) -> Meter:
        key, _, _, window_s, _ = bucket
        if not window_s:
            return self._holds.get(key) or Holds(0)
        if window_s < 0:
            return self._purses.reach(key, now_us)
        family = self._rates.get(window_s)
        if family is None:
            family = self._rates[window_s] = _Family(window_s)
        return family.reach(key, now_us)

    def _fence(self, name: str, now_us: int) -> int:
        return self._fences.setdefault(name, now_us)


class _Family:
    """Every rate window of one length, the least recently advanced first, so that the expired ones are found."""

    __slots__ = ("_window_s", "_windows")

    def __init__(self, window_s: int) -> None:
        self._window_s = window_s
        self._windows: OrderedDict[str, Window] = OrderedDict()

    def find(self, key: str) -> Window | None:
        return self._windows.get(key)

    def reach(self, key: str, now_us: int) -> Window:
        """The window of `key`, advanced to `now_us`; a new one takes the place of up to two expired ones."""
        window = self._windows.get(key)
        if window is None:
            self._forget(now_us)
            window = self._windows[key] = Window(self._window_s, now_us)
            return window
        newest = window.newest
        if window.advance(now_us) != newest:
            self._windows.move_to_end(key)
        return window

    def _forget(self, now_us: int) -> None:
        for _ in range(2):
            oldest = next(iter(self._windows.items()), None)
            if oldest is None or (oldest[1].newest + SLOTS) * oldest[1].sub_us > now_us:
                return
            del self._windows[oldest[0]]


class _Values:
    """Small values that expire."""

    __slots__ = ("_expiries", "_values")

    def __init__(self) -> None:
        self._values: dict[str, tuple[bytes, int]] = {}
        self._expiries: list[tuple[int, str]] = []

    def find(self, key: str, now_us: int) -> bytes | None:
        found = self._values.get(key)
        return found[0] if found is not None and found[1] > now_us else None

    def put(self, key: str, value: bytes, *, now_us: int, ttl_s: float) -> None:
        self._forget(now_us)
        if len(self._values) >= MAX_VALUES and key not in self._values:
            raise StateUnavailable(internal=f"{MAX_VALUES} values are stored")
        expires_us = now_us + round(ttl_s * 1_000_000)
        self._values[key] = (value, expires_us)
        heapq.heappush(self._expiries, (expires_us, key))
        # Values stored again leave their earlier expiries behind: start afresh when these are the greater part.
        if len(self._expiries) > 2 * len(self._values) + 64:
            self._expiries = [(expires_us, key) for key, (_, expires_us) in self._values.items()]
            heapq.heapify(self._expiries)

    def drop(self, key: str) -> None:
        self._values.pop(key, None)

    def _forget(self, now_us: int) -> None:
        while self._expiries and self._expiries[0][0] <= now_us:
            expires_us, key = heapq.heappop(self._expiries)
            if key in self._values and self._values[key][1] == expires_us:
                del self._values[key]
