"""An experiment's results as they are told. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from modelport.experiments.evidence import (
    MIN_UNITS,
    Comparison,
    Interval,
    Sums,
    compare,
    mean_interval,
    mismatch_p_value,
    wilson,
    winner,
)
from modelport.experiments.model import Experiment, Metric
from modelport.experiments.tally import Tally

# A split as uneven as this happens once in a thousand experiments that lose no calls.
MISMATCH_BELOW = 0.001


@dataclass(frozen=True, slots=True)
class VariantResult:
    """`latency_ms` are p50, p95 and p99 of the latest calls; `comparison` is with the first variant, by the metric."""

    name: str
    tally: Tally
    error_rate: Interval | None
    latency: Interval | None
    feedback: Interval | None
    quantiles_ms: tuple[float, float, float] | None
    comparison: Comparison | None


@dataclass(frozen=True, slots=True)
class Results:
    """`winner` is a variant's name once it is sure; until then `reason` says what is missing."""

    experiment: Experiment
    variants: list[VariantResult]
    mismatch_p: float
    winner: str | None
    reason: str


def results(experiment: Experiment, tallies: Mapping[str, Tally]) -> Results:
    """What the tallies say. While calls of a variant are lost, nobody wins."""
    bounded, names = experiment.metric != "latency", [variant.name for variant in experiment.variants]
    sums = [_sums(tallies[name], experiment.metric) for name in names]
    told = [
        _variant(name, tallies[name], compare(sums[0], own, alpha=experiment.alpha, bounded=bounded) if place else None)
        for place, (name, own) in enumerate(zip(names, sums, strict=True))
    ]
    mismatch = mismatch_p_value([tallies[name].units for name in names], [one.weight for one in experiment.variants])
    best = winner(sums, alpha=experiment.alpha, lower_is_better=experiment.metric != "feedback", bounded=bounded)
    if mismatch < MISMATCH_BELOW:
        reason = "The units are not split as the weights say, so something loses calls of a variant; nothing is sure."
        return Results(experiment, told, mismatch, None, reason)
    if best is not None:
        return Results(experiment, told, mismatch, names[best], "")
    few = min(own.units for own in sums)
    reason = "No variant is surely better than every other one yet."
    if few < MIN_UNITS:
        reason = (
            f"Each variant needs {MIN_UNITS} units ({experiment.sticky}) with a {experiment.metric}; one has {few}."
        )
    return Results(experiment, told, mismatch, None, reason)


def _variant(name: str, tally: Tally, comparison: Comparison | None) -> VariantResult:
    ordered = tally.latencies_us
    quantiles = None
    if ordered:
        p50, p95, p99 = (
            ordered[min(int(share * len(ordered)), len(ordered) - 1)] / 1000 for share in (0.5, 0.95, 0.99)
        )
        quantiles = (p50, p95, p99)
    return VariantResult(
        name,
        tally,
        wilson(tally.errors.x, tally.errors.n),
        mean_interval(tally.latency),
        mean_interval(tally.feedback),
        quantiles,
        comparison,
    )


def _sums(tally: Tally, metric: Metric) -> Sums:
    return {"error_rate": tally.errors, "latency": tally.latency, "feedback": tally.feedback}[metric]
