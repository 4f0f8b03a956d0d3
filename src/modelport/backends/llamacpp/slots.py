"""Which run gets which slot, and when: a bounded first-in-first-out queue. Decisions only; no I/O, no threads."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import Any

from modelport.backends.llamacpp.wire import Run

# How much a finished run moves the measured duration; the last ten or so runs decide.
_SPEED_WEIGHT = 0.2
_FIRST_GUESS_S = 2.0


@dataclass(slots=True, eq=False)
class Entry:
    """One run on its way through the queue; `owner` is whatever waits for its pieces."""

    run: Run
    tenant: str
    deadline_s: float
    owner: Any
    cancelled: bool = False
    slot: int = -1
    started_s: float = 0.0


@dataclass(slots=True)
class _Slot:
    busy: bool = False
    tenant: str = ""
    tokens: list[int] = field(default_factory=list)
    used_s: float = 0.0


class SlotTable:
    """The queue in front of the engine's slots.

    `take_next` gives an entry a slot that holds a prompt of the same tenant with the longest common beginning, so
    that it need not be read again, or else the one that was used longest ago. Whether the cache may be used is told
    apart: never across tenants, since the speed and the count of cached tokens would tell one what another asked.
    """

    def __init__(self, slots: int, queue: int) -> None:
        self._slots = [_Slot() for _ in range(slots)]
        self._queue: deque[Entry] = deque()
        self._limit = queue
        self._busy = 0
        self.seconds_per_run = _FIRST_GUESS_S

    @property
    def busy(self) -> int:
        return self._busy

    @property
    def queued(self) -> int:
        return len(self._queue)

    @property
    def capacity(self) -> int:
        """The most runs that can be in here at one time."""
        return self._limit + len(self._slots)

    def admit(self, entries: list[Entry], now_s: float) -> bool:
        """Queue all of `entries`, or none: when there is no room for all, or their time would be over before a slot is
        free for the last of them."""
        if self._busy + len(self._queue) + len(entries) > self.capacity:
            return False
        if now_s + self.wait_s(len(entries)) > entries[-1].deadline_s:
            return False
        self._queue.extend(entries)
        return True

    def wait_s(self, runs: int) -> float:
        """About how long the last of `runs` more would wait for a slot, from the speed of the last runs."""
        behind = self._busy + len(self._queue) + runs - len(self._slots)
        return self.seconds_per_run * max(behind, 0) / len(self._slots)

    def retry_after_s(self) -> float:
        """When a place is likely to be free, from the speed of the last runs."""
        return max(1.0, round(self.seconds_per_run * (len(self._queue) + 1) / len(self._slots), 1))

    def cancel(self, entries: list[Entry]) -> None:
        """Stop `entries`: those in the queue leave it at once, those in a slot do so at their next token."""
        for entry in entries:
            entry.cancelled = True
        if any(entry.slot < 0 for entry in entries):
            self._queue = deque(entry for entry in self._queue if not entry.cancelled)

    def expired(self, now_s: float) -> list[Entry]:
        """Take out and return the entries that waited beyond their deadline."""
        late = [entry for entry in self._queue if entry.deadline_s <= now_s]
        if late:
            self._queue = deque(entry for entry in self._queue if entry.deadline_s > now_s)
        return late

    def take_next(self, now_s: float) -> tuple[Entry, bool] | None:
        """The next entry with its slot, and whether that slot's cache may be used; None when none can start."""
        if self._queue and self._busy < len(self._slots):
            entry = self._queue.popleft()
            index, shared = self._choose(entry)
            slot = self._slots[index]
            same_tenant = slot.tenant == entry.tenant
            slot.busy, slot.tenant, slot.tokens, slot.used_s = True, entry.tenant, entry.run.tokens, now_s
            self._busy += 1
            entry.slot, entry.started_s = index, now_s
            return entry, same_tenant and shared > 0
        return None

    def release(self, entry: Entry, now_s: float, *, whole: bool) -> None:
        """Give the slot of `entry` back; only a `whole` run tells about the speed."""
        self._slots[entry.slot].busy = False
        self._busy -= 1
        if whole:
            self.seconds_per_run += _SPEED_WEIGHT * (now_s - entry.started_s - self.seconds_per_run)

    def _choose(self, entry: Entry) -> tuple[int, int]:
        best, best_rank, best_shared = -1, (-1, 0.0), 0
        for index, slot in enumerate(self._slots):
            if slot.busy:
                continue
            shared = common_length(slot.tokens, entry.run.tokens) if slot.tenant == entry.tenant else 0
            rank = (shared, -slot.used_s)
            if best < 0 or rank > best_rank:
                best, best_rank, best_shared = index, rank, shared
        return best, best_shared


def common_length(first: list[int], second: list[int]) -> int:
    """How many tokens two prompts have in common at their beginning."""
    low, high = 0, min(len(first), len(second))
    while low < high:
        middle = (low + high + 1) // 2
        if first[low:middle] == second[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low
