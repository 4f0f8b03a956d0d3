"""The arithmetic of limits: how much a rate window or a set of holds has room for. No I/O, no clock of its own.

A window of `window_s` is cut into `SUB_WINDOWS` pieces, and the piece that time is in now counts with the 60 before
it. Two amounts less than `window_s` apart are never more than 60 pieces apart, so whenever one is let through the
other is in its sum: no stretch of `window_s` holds more than the limit. Redis runs the same rule in
`scripts/windows.lua`. Decision: docs/decisions/0003-sliding-windows.md.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from operator import itemgetter

from modelport.state.protocol import HOLD_RETRY_S, MAX_AMOUNT, SUB_WINDOWS, Bucket, Level, PurseLevel, Taken

# The piece that time is in, and those that may still lie partly inside the window.
SLOTS = SUB_WINDOWS + 1
_HOLD_RETRY_US = round(HOLD_RETRY_S * 1_000_000)
_EMPTY = bytes(8 * SLOTS)
# More than any limit.
_ALL = 2**63


def sub_window_us(window_s: int) -> int:
    """The length of a piece, rounded up so that 60 of them are never shorter than the window."""
    return -(-window_s * 1_000_000 // SUB_WINDOWS)


class Window:
    """What one rate bucket let through, by piece: a ring of 61 integers and their sum.

    Every operation is O(1), but for `advance` (O(1) for each piece that has passed, 61 at most) and the two
    questions about when room comes back (61 at most).
    """

    __slots__ = ("amounts", "newest", "sub_us", "total")

    def __init__(self, window_s: int, now_us: int) -> None:
        self.sub_us = sub_window_us(window_s)
        self.newest = now_us // self.sub_us
        self.total = 0
        self.amounts = array("q", _EMPTY)

    def advance(self, now_us: int) -> int:
        """Let go of what has left the window, and return the number of the piece that counts now.

        When the clock was set back, time stands still here until it has caught up; when it was set back by more
        than the window, all that is counted is counted as of now, so that it is neither forgotten nor kept forever.
        """
        index = now_us // self.sub_us
        passed = index - self.newest
        if passed == 0 or -SUB_WINDOWS <= passed < 0:
            return self.newest
        if passed > SUB_WINDOWS or passed < 0:
            kept = self.total if passed < 0 else 0
            self.amounts = array("q", _EMPTY)
            self.amounts[index % SLOTS] = kept
            self.total = kept
        else:
            amounts = self.amounts
            for entered in range(self.newest + 1, index + 1):
                self.total -= amounts[entered % SLOTS]
                amounts[entered % SLOTS] = 0
        self.newest = index
        return index

    def add(self, amount: int) -> None:
        """Count `amount` in the newest piece."""
        self.amounts[self.newest % SLOTS] += amount
        self.total += amount

    def correct(self, mark: int, change: int) -> bool:
        """Add `change` to piece `mark` (never below nothing); false when that piece has left the window."""
        if not self.newest - SUB_WINDOWS <= mark <= self.newest:
            return False
        change = max(change, -self.amounts[mark % SLOTS])
        self.amounts[mark % SLOTS] += change
        self.total += change
        return True

    def free_in_us(self, excess: int, now_us: int) -> int:
        """Microseconds until at least `excess` (at most the total) has left the window."""
        for index in range(self.newest - SUB_WINDOWS, self.newest + 1):
            excess -= self.amounts[index % SLOTS]
            if excess <= 0:
                return (index + SLOTS) * self.sub_us - now_us
        raise ValueError("more was asked to leave the window than is in it")

    def empty_in_us(self, now_us: int) -> int:
        """Microseconds until everything has left the window."""
        if self.total == 0:
            return 0
        index = self.newest
        while not self.amounts[index % SLOTS]:
            index -= 1
        return (index + SLOTS) * self.sub_us - now_us


class Holds:
    """What is held of one hold bucket, with the questions of a `Window`.

    Nobody knows when a call will end, so room is said to come back after `HOLD_RETRY_S`: the time to ask again.
    """

    __slots__ = ("total",)
    newest = 0

    def __init__(self, total: int) -> None:
        self.total = total

    def add(self, amount: int) -> None:
        self.total += amount

    def free_in_us(self, excess: int, now_us: int) -> int:
        return _HOLD_RETRY_US

    def empty_in_us(self, now_us: int) -> int:
        return _HOLD_RETRY_US if self.total else 0


class Purse:
    """Money of one budget: what was spent (None while nobody has said how much) and what running calls hold."""

    __slots__ = ("held", "spent")
    newest = 0

    def __init__(self, spent: int | None, held: int) -> None:
        self.spent = spent
        self.held = held

    @property
    def total(self) -> int:
        """What is gone; everything, as long as nobody has said how much."""
        return _ALL if self.spent is None else self.spent + self.held

    def add(self, amount: int) -> None:
        self.held += amount

    def settle(self, *, release: int, charge: int) -> None:
        """Let go of a hold and count what the call cost. A purse that nobody seeded is told of it by the record."""
        self.held += release
        if self.spent is not None:
            self.spent += charge

    def free_in_us(self, excess: int, now_us: int) -> int:
        return _HOLD_RETRY_US

    def empty_in_us(self, now_us: int) -> int:
        return _HOLD_RETRY_US if self.held else 0


Meter = Window | Holds | Purse


_identity = itemgetter(0, 3)


def check(buckets: Sequence[Bucket]) -> None:
    """Raises: ValueError for a negative or too large amount, or a bucket that is named twice in one take."""
    for bucket in buckets:
        if not 0 <= bucket.amount <= MAX_AMOUNT:
            raise ValueError(f"the amount of bucket {bucket.key!r} is not in 0…{MAX_AMOUNT}")
    if len(set(map(_identity, buckets))) != len(buckets):
        raise ValueError("a bucket is named twice in one take")


def take_all(id: str, buckets: Sequence[Bucket], meters: Sequence[Meter], *, now_us: int, fence: int) -> Taken:
    """Add every bucket's amount to its meter when all have room, else to none. The meters are as of `now_us`."""
    for bucket, meter in zip(buckets, meters, strict=True):
        if meter.total + bucket[4] > bucket[2]:
            return _refusal(id, buckets, meters, now_us=now_us, fence=fence)
    levels, marks = [], []
    for bucket, meter in zip(buckets, meters, strict=True):
        _, _, limit, window_s, amount = bucket
        meter.add(amount)
        marks.append(meter.newest)
        # A level of its own, not `level()`: this is the path of every call.
        levels.append(
            Level(bucket, limit - meter.total, meter.empty_in_us(now_us) / 1_000_000)
            if window_s >= 0
            else level(bucket, meter, now_us)
        )
    return Taken(id, levels, -1, 0.0, now_us, fence, marks)


def _refusal(id: str, buckets: Sequence[Bucket], meters: Sequence[Meter], *, now_us: int, fence: int) -> Taken:
    levels = [level(bucket, meter, now_us) for bucket, meter in zip(buckets, meters, strict=True)]
    for position, meter in enumerate(meters):
        if isinstance(meter, Purse) and meter.spent is None:
            return Taken(id, levels, position, 0.0, now_us, fence)
    refused, wait_us, fits = -1, 0, True
    for position, (bucket, meter) in enumerate(zip(buckets, meters, strict=True)):
        excess = meter.total + bucket.amount - bucket.limit
        if excess > 0:
            if refused < 0:
                refused = position
            kept = (meter.spent or 0) if isinstance(meter, Purse) else 0
            if kept + bucket.amount > bucket.limit:
                fits = False
            else:
                wait_us = max(wait_us, meter.free_in_us(excess, now_us))
    return Taken(id, levels, refused, wait_us / 1_000_000 if fits else None, now_us, fence)


def level(bucket: Bucket, meter: Meter, now_us: int) -> Level:
    """What is left of the bucket; the meter is as of `now_us`."""
    left = bucket.limit - meter.total
    if isinstance(meter, Purse):
        return PurseLevel(bucket, max(left, 0), meter.empty_in_us(now_us) / 1_000_000, meter.spent, meter.held)
    return Level(bucket, left if left > 0 else 0, meter.empty_in_us(now_us) / 1_000_000)


def changes(taken: Taken, amounts: Sequence[int]) -> list[tuple[Bucket, int, int]]:
    """Close `taken`; what a settlement must change: (bucket, mark, change of a rate or release of a hold). A purse's
    mark is what it is charged, beside the release.

    Empty when nothing was taken or it is settled already. Raises: ValueError when `amounts` has another length
    than the buckets, or a negative amount.
    """
    if len(amounts) != len(taken.levels) or (amounts and min(amounts) < 0):
        raise ValueError("settle takes one amount, not negative, for each bucket")
    if taken.settled or taken.refused >= 0:
        return []
    taken.settled = True
    found = []
    for taken_level, mark, amount in zip(taken.levels, taken.marks, amounts, strict=True):
        bucket = taken_level.bucket
        _, _, _, window_s, reserved = bucket
        used = amount if amount < MAX_AMOUNT else MAX_AMOUNT
        if window_s < 0:
            found.append((bucket, used, -reserved))
            continue
        change = used - reserved if window_s else -reserved
        if change:
            found.append((bucket, mark, change))
    return found
