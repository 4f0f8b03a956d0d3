"""What a batcher has done, in plain numbers: cheap to count, read every now and then by whoever shows them."""

from __future__ import annotations

from typing import Any

from modelport.kit.buckets import BATCH_SIZES, WAITS_S, Buckets


class Figures:
    """Counts since the model was loaded; `waiting` is now. `sizes` are rows of a batch, `waits_s` from a call's arrival
    to its first batch, `refused` calls that would have come too late, `expired` those that did."""

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
