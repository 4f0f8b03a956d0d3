"""Who is computed next: organizations take turns by what they cost, and calls of one organization by their age.

Start-time fair queuing: every organization has a clock that runs on by the cost of what is computed for it, and the one
whose clock is furthest behind is served first. One that comes back from a pause starts at the present, so that nothing
is saved up. Two organizations that both have something waiting never differ by more than one batch of each.

Source: Goyal, Vin and Cheng, "Start-time Fair Queuing", SIGCOMM 1996.
"""

from __future__ import annotations

import heapq
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any

from modelport.backends.batching.work import Packing, Rows

# How many waiting calls are looked at for one batch, so that a long queue is not walked each time.
LOOK_AHEAD = 64
# Organizations without a waiting call whose clock is kept while it is ahead of the others'.
_IDLE_CLOCKS = 1024
_NOTHING = (0, 0)


class Entry:
    """A call in the queue: the rows that are left of it, and whatever its owner (`ticket`) needs to answer it."""

    __slots__ = ("deadline_s", "lane", "left", "next_row", "rows", "sizes", "tenant", "ticket")

    def __init__(
        self,
        tenant: str,
        rows: Rows,
        *,
        sizes: Sequence[int] | None = None,
        lane: object = None,
        deadline_s: float = float("inf"),
        ticket: Any = None,
    ) -> None:
        self.tenant = tenant
        self.rows = rows
        self.sizes = sizes
        self.lane = lane
        self.deadline_s = deadline_s
        self.ticket = ticket
        self.next_row = 0
        self.left = sum(sizes) if sizes is not None else len(rows)

    @property
    def complete(self) -> bool:
        return self.next_row == len(self.rows)


class Batch:
    """Rows that are computed together: of each entry the number of its first row, and a block.

    `expired` are entries that were found too late.
    """

    __slots__ = ("_packing", "count", "entries", "expired", "lane", "largest", "total")

    def __init__(self, packing: Packing) -> None:
        self._packing = packing
        self.entries: list[tuple[Entry, int, Any]] = []
        self.expired: list[Entry] = []
        self.lane: object = None
        self.count = self.largest = self.total = 0

    @property
    def cost(self) -> int:
        """What computing it costs: every row is as long as the longest."""
        return self.largest * self.count

    @property
    def has_room(self) -> bool:
        return self.count < self._packing.max_rows

    def take(self, entry: Entry) -> int:
        """As many rows of the entry as go with what is there; what they cost, 0 when none does."""
        if self.count and entry.lane != self.lane:
            return 0
        first, stop, cost = entry.next_row, len(entry.rows), 0
        row = first
        while row < stop and self.count < self._packing.max_rows:
            size = 1 if entry.sizes is None else entry.sizes[row]
            if self.count and entry.sizes is not None and not self._fits(size):
                break
            self.count += 1
            self.total += size
            self.largest = max(self.largest, size)
            cost += size
            row += 1
        if cost:
            self.lane = entry.lane
            self.entries.append((entry, first, entry.rows[first:row]))
            entry.next_row = row
            entry.left -= cost
        return cost

    def _fits(self, size: int) -> bool:
        padded = max(self.largest, size) * (self.count + 1)
        most = self._packing.max_cost
        # Up to a quarter of padding costs less than another run.
        return (most is None or padded <= most) and padded * 3 <= (self.total + size) * 4 + 64


class _Tenant:
    """One organization's waiting calls, and its clock."""

    __slots__ = ("clock", "entries", "name")

    def __init__(self, name: str, clock: float) -> None:
        self.name = name
        self.clock = clock
        self.entries: OrderedDict[Entry, None] = OrderedDict()


class FairQueue:
    """Waiting calls. Every entry that was pushed leaves once: computed, expired, or dropped by its owner."""

    def __init__(self, packing: Packing) -> None:
        self._packing = packing
        self._tenants: dict[str, _Tenant] = {}
        # Tenants that wait, by clock; the number keeps those with equal clocks in the order in which they came.
        self._turns: list[tuple[float, int, _Tenant]] = []
        self._numbers = iter(range(1 << 62))
        self._idle: OrderedDict[str, float] = OrderedDict()
        # The cost of what each organization has waiting or on its way: in all, and at most a batch of each call.
        self._backlogs: dict[str, tuple[int, int]] = {}
        self._now = 0.0
        self.waiting = 0

    @property
    def busy(self) -> bool:
        """Whether anything waits or is on its way."""
        return bool(self._backlogs)

    def announce(self, tenant: str, cost: int) -> None:
        """Count a call that is on its way here, so that others know of it, until it is retracted."""
        self._adjust(tenant, 0, cost)

    def retract(self, tenant: str, cost: int) -> None:
        """The call that was announced is here now, or won't come."""
        self._adjust(tenant, cost, 0)

    def push(self, entry: Entry) -> None:
        tenant = self._tenants.get(entry.tenant)
        if tenant is None:
            clock = max(self._now, self._idle.pop(entry.tenant, 0.0))
            tenant = self._tenants[entry.tenant] = _Tenant(entry.tenant, clock)
            self._wait(tenant)
        tenant.entries[entry] = None
        self._adjust(entry.tenant, 0, entry.left)
        self.waiting += 1

    def drop(self, entry: Entry) -> None:
        """Take a call out that nobody waits for any more. Harmless when it is not in the queue."""
        tenant = self._tenants.get(entry.tenant)
        if tenant is not None and entry in tenant.entries:
            self._remove(tenant, entry)

    def take(self, now_s: float) -> Batch:
        """The next batch, with nothing in it when nobody waits."""
        batch = Batch(self._packing)
        looked: dict[str, Iterator[Entry]] = {}
        passed: list[_Tenant] = []
        looks = LOOK_AHEAD
        while self._turns and batch.has_room and looks > 0:
            clock, _, tenant = heapq.heappop(self._turns)
            if not tenant.entries:
                self._leave(tenant)
                continue
            if not batch.count:
                self._now = max(self._now, clock)
            rest = looked.get(tenant.name)
            if rest is None:
                rest = looked[tenant.name] = iter(tuple(islice(tenant.entries, looks)))
            taken, spent = self._take_from(tenant, rest, batch, now_s)
            looks -= spent
            if taken:
                tenant.clock += taken
                self._wait(tenant)
            else:
                passed.append(tenant)
        for tenant in passed:
            self._wait(tenant)
        return batch

    def drain(self) -> list[Entry]:
        """Everything that waits, taken out."""
        found = [entry for tenant in self._tenants.values() for entry in tenant.entries]
        for entry in found:
            self.drop(entry)
        return found

    def ahead_of(self, tenant: str, cost: int) -> int:
        """What will be computed before a new call of this cost is done, if turns are given as they are.

        Of its own organization's calls each has as many turns as it needs itself; others get no more than both.
        """
        backlog, front = self._backlogs.get(tenant, _NOTHING)
        own = min(backlog, front * -(-cost // self._packing.full_cost))
        others = (theirs for name, (theirs, _) in self._backlogs.items() if name != tenant)
        return own + sum(min(theirs, own + cost) for theirs in others)

    def _adjust(self, tenant: str, before: int, after: int) -> None:
        """What is left of a call changed from `before` to `after`."""
        full = self._packing.full_cost
        backlog, front = self._backlogs.get(tenant, _NOTHING)
        backlog += after - before
        if backlog > 0:
            self._backlogs[tenant] = backlog, front + min(after, full) - min(before, full)
        else:
            self._backlogs.pop(tenant, None)

    def _take_from(self, tenant: _Tenant, rest: Iterator[Entry], batch: Batch, now_s: float) -> tuple[int, int]:
        """What was taken of the tenant's next call that goes with the batch, and how many were looked at."""
        looks = 0
        for entry in rest:
            looks += 1
            if entry.deadline_s <= now_s:
                self._remove(tenant, entry)
                batch.expired.append(entry)
                continue
            taken = batch.take(entry)
            if not taken:
                continue
            self._adjust(tenant.name, entry.left + taken, entry.left)
            if entry.complete:
                self._remove(tenant, entry)
            else:
                # A call with many rows goes to the end for the rest of them, so that it does not hold up small ones.
                tenant.entries.move_to_end(entry)
            return taken, looks
        return 0, looks

    def _remove(self, tenant: _Tenant, entry: Entry) -> None:
        del tenant.entries[entry]
        self._adjust(tenant.name, entry.left, 0)
        self.waiting -= 1

    def _wait(self, tenant: _Tenant) -> None:
        heapq.heappush(self._turns, (tenant.clock, next(self._numbers), tenant))

    def _leave(self, tenant: _Tenant) -> None:
        """Nothing of it waits. Its clock is kept while it is ahead, so that a short pause wins nothing."""
        del self._tenants[tenant.name]
        if tenant.clock > self._now:
            self._idle[tenant.name] = tenant.clock
            while len(self._idle) > _IDLE_CLOCKS:
                self._idle.popitem(last=False)
