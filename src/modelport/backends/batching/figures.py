"""What a batcher has done, in plain numbers: cheap to count, read every now and then by whoever shows them."""

from __future__ import annotations

from bisect import bisect_left
from typing import Any

BATCH_SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
WAITS_S = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.2, 0.5, 1.0, 2.5, 5.0, 10.0)


class Buckets:
    """How often a value fell under each bound, the last one being all above, and the sum of the values."""

    __slots__ = ("bounds", "hits", "sum")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds = bounds
        self.hits = [0] * (len(bounds) + 1)
        self.sum = 0.0

    def add(self, value: float) -> None:
        self.hits[bisect_left(self.bounds, value)] += 1
        self.sum += value

    @property
    def count(self) -> int:
        return sum(self.hits)

    def mean(self) -> float:
        return self.sum / (self.count or 1)


class Figures:
    """Counts since the model was loaded; `waiting` is now."""

    __slots__ = ("expired", "refused", "sizes", "waiting", "waits_s")

    def __init__(self) -> None:
        self.sizes = Buckets(BATCH_SIZES)
        self.waits_s = Buckets(WAITS_S)
        self.waiting = 0
        self.refused = 0
        self.expired = 0

    def told(self) -> dict[str, Any]:
        """For `/v1/models/{id}`."""
        return {
            "batches": self.sizes.count,
            "mean_batch_size": round(self.sizes.mean(), 2),
            "mean_wait_ms": round(self.waits_s.mean() * 1000, 3),
            "waiting": self.waiting,
            "refused": self.refused,
            "expired": self.expired,
        }
