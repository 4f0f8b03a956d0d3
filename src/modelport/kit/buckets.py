"""A histogram in plain numbers: cheap to add to, taken over now and then by whoever shows it."""

from __future__ import annotations

from bisect import bisect_left


class Buckets:
    """How often a value fell under each bound, the last bucket being all above, and the sum of the values."""

    __slots__ = ("_taken", "_taken_sum", "bounds", "hits", "sum")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds = bounds
        self.hits = [0] * (len(bounds) + 1)
        self.sum = 0.0
        self._taken = list(self.hits)
        self._taken_sum = 0.0

    def add(self, value: float) -> None:
        self.hits[bisect_left(self.bounds, value)] += 1
        self.sum += value

    @property
    def count(self) -> int:
        return sum(self.hits)

    def mean(self) -> float:
        """0 where nothing was added."""
        return self.sum / (self.count or 1)

    def take(self) -> tuple[list[int], float]:
        """What was added since the last time: the hits of each bucket, and their sum. For one taker."""
        hits = [now - before for now, before in zip(self.hits, self._taken, strict=True)]
        total = self.sum - self._taken_sum
        self._taken, self._taken_sum = list(self.hits), self.sum
        return hits, total


BATCH_SIZES = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0)
WAITS_S = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.2, 0.5, 1.0, 2.5, 5.0, 10.0)
