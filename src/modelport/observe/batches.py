"""Batches of local models for Prometheus: taken over from each model's own figures, so that counting costs nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Protocol

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from modelport.kit.buckets import BATCH_SIZES, WAITS_S, Buckets


class Figures(Protocol):
    """What a model's batcher counts (`modelport.backends.batching.figures`)."""

    sizes: Buckets
    waits_s: Buckets
    waiting: int
    refused: int
    expired: int


Sources = Callable[[], Iterable[tuple[str, Figures]]]
"""The figures of every local model that is loaded, by the model's id; versions of one model count together."""


class BatchMetrics:
    """The metrics of all models' batches in this process."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._sources: Sources = lambda: ()
        self._counted: dict[int, tuple[Figures, int, int]] = {}
        self._waiting: list[str] = []
        self._queue = Gauge(
            "modelport_backend_queue_depth",
            "Calls waiting for an engine.",
            ["model"],
            registry=registry,
            multiprocess_mode="livesum",
        )
        self._sizes = Histogram(
            "modelport_backend_batch_size", "Inputs computed at once.", ["model"], buckets=BATCH_SIZES,
            registry=registry,
        )  # fmt: skip
        self._waits = Histogram(
            "modelport_backend_queue_seconds",
            "From a call's arrival at a model to its first batch.",
            ["model"],
            buckets=WAITS_S,
            registry=registry,
        )
        self._refused = Counter(
            "modelport_backend_refusals",
            "Calls that were not computed: late (would have been answered too late), expired (were, while waiting).",
            ["model", "reason"],
            registry=registry,
        )

    def watch(self, sources: Sources) -> None:
        """Take over from these from now on."""
        self._sources = sources

    def hand_over(self) -> None:
        """Tell Prometheus what was counted since the last time."""
        waiting = dict.fromkeys(self._waiting, 0)
        counted = {}
        for model, figures in self._sources():
            _add(self._sizes.labels(model), figures.sizes)
            _add(self._waits.labels(model), figures.waits_s)
            waiting[model] = waiting.get(model, 0) + figures.waiting
            _, refused, expired = self._counted.get(id(figures), (figures, 0, 0))
            self._refused.labels(model, "late").inc(figures.refused - refused)
            self._refused.labels(model, "expired").inc(figures.expired - expired)
            # Kept together with the object, so that no other one gets its id.
            counted[id(figures)] = (figures, figures.refused, figures.expired)
        self._counted = counted
        self._waiting = [model for model, depth in waiting.items() if depth]
        for model, depth in waiting.items():
            self._queue.labels(model).set(depth)


def _add(histogram: Histogram, buckets: Buckets) -> None:
    hits, total = buckets.take()
    # The library has no way to observe many values at once, so its values are added to directly.
    for value, count in zip(histogram._buckets, hits, strict=True):
        if count:
            value.inc(count)
    if total:
        histogram._sum.inc(total)
