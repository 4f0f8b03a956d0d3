"""How service levels are written: the response models, and what fills them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from modelport.kit.clock import rfc3339
from modelport.slo.model import Counts, Promise, Tally, Window
from modelport.slo.rules import error_rate, hit_rate, quantiles_ms, total_of

SloStatus = Literal["met", "missed", "burning", "no_data"]
_SHARES = (0.5, 0.95, 0.99)


class LevelBody(BaseModel):
    """What a promise came to in one window."""

    window: str
    good: int
    total: int = Field(description="Calls, or minutes. A caller's own mistakes and hang-ups are not among them.")
    attained: float | None = Field(description="`good` of `total`; null where nothing happened.")
    burn_rate: float | None = Field(description="How many times faster than allowed the rest is spent.")
    met: bool | None


class SloBody(BaseModel):
    """One promise."""

    object: Literal["slo"]
    objective: Literal["latency", "errors", "availability", "uptime"] = Field(
        description="`latency`: good calls within `threshold_ms`. `errors`: calls without a 5xx. `availability`: calls "
        "without a 503 or 504. `uptime`: minutes in which a worker took calls."
    )
    model: str | None = Field(description="Null: the whole platform's.")
    endpoint: str | None
    target: float = Field(description="The promised share.")
    threshold_ms: float | None
    status: SloStatus = Field(
        description="`burning`: spent too fast over five minutes and an hour. Else what the longest window says."
    )
    windows: list[LevelBody]


_SLO_EXAMPLE: dict[str, Any] = {
    "object": "slo",
    "objective": "latency",
    "model": "efficientnet-lite0",
    "endpoint": "/v1/images/classify",
    "target": 0.95,
    "threshold_ms": 200,
    "status": "met",
    "windows": [
        {"window": "5m", "good": 5990, "total": 6000, "attained": 0.99833, "burn_rate": 0.0333, "met": True},
        {"window": "1h", "good": 70100, "total": 71000, "attained": 0.98732, "burn_rate": 0.2535, "met": True},
        {"window": "30d", "good": 70100, "total": 71000, "attained": 0.98732, "burn_rate": 0.2535, "met": True},
    ],
}


class SloList(BaseModel):
    """The platform's own promise first, then each model's at each endpoint."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"object": "list", "data": [_SLO_EXAMPLE]}]})

    object: Literal["list"]
    data: list[SloBody]


class LatencyBody(BaseModel):
    """Milliseconds, of calls that succeeded, read off a histogram; null where there were none."""

    p50: float | None
    p95: float | None
    p99: float | None


class CacheBody(BaseModel):
    """Calls to models with a response cache."""

    hits: int = Field(description="Answered from it, or with the answer that another call was waiting for.")
    misses: int
    bypassed: int
    hit_rate: float | None


class VersionShare(BaseModel):
    version: str
    calls: int
    share: float


class ModelSummary(BaseModel):
    """One model's calls in the window, at all endpoints."""

    model: str
    calls: int
    error_rate: float | None = Field(description="Of calls that failed with a 5xx.")
    latency_ms: LatencyBody
    cache: CacheBody
    versions: list[VersionShare] = Field(description="What served the calls, the most frequent first.")


class SummaryBody(BaseModel):
    """The whole installation in one window. `slos` are the promises as of this window alone."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "object": "metrics",
                    "window": "5m",
                    "start": "2026-11-01T12:00:00Z",
                    "end": "2026-11-01T12:05:42Z",
                    "calls": 6000,
                    "calls_per_s": 17.5,
                    "error_rate": 0.0,
                    "latency_ms": {"p50": 21.2, "p95": 61.5, "p99": 140.9},
                    "cache": {"hits": 40, "misses": 160, "bypassed": 0, "hit_rate": 0.2},
                    "models": [
                        {
                            "model": "efficientnet-lite0",
                            "calls": 6000,
                            "error_rate": 0.0,
                            "latency_ms": {"p50": 21.2, "p95": 61.5, "p99": 140.9},
                            "cache": {"hits": 40, "misses": 160, "bypassed": 0, "hit_rate": 0.2},
                            "versions": [{"version": "1", "calls": 6000, "share": 1.0}],
                        }
                    ],
                    "slos": [{**_SLO_EXAMPLE, "windows": _SLO_EXAMPLE["windows"][:1]}],
                }
            ]
        }
    )

    object: Literal["metrics"]
    window: str
    start: str
    end: str
    calls: int
    calls_per_s: float
    error_rate: float | None
    latency_ms: LatencyBody
    cache: CacheBody
    models: list[ModelSummary]
    slos: list[SloBody]


def slo_body(promise: Promise) -> SloBody:
    """One promise as it is told."""
    return SloBody(
        object="slo",
        objective=promise.objective.value,
        model=promise.model,
        endpoint=promise.endpoint,
        target=round(promise.target, 9),
        threshold_ms=promise.threshold_ms,
        status=_status(promise),
        windows=[
            LevelBody(
                window=level.window,
                good=level.good,
                total=level.total,
                attained=_rounded(level.attained, 6),
                burn_rate=_rounded(level.burn_rate, 4),
                met=level.met,
            )
            for level in promise.levels
        ],
    )


def _status(promise: Promise) -> SloStatus:
    met = promise.levels[-1].met
    if promise.burning:
        return "burning"
    return "no_data" if met is None else "met" if met else "missed"


def summary_body(window: Window, tally: Tally, found: Sequence[Promise]) -> SummaryBody:
    """One window as it is told."""
    total = total_of(tally)
    calls = sum(total.statuses.values())
    models = sorted({model for model, _ in tally.calls} | tally.cache.keys())
    return SummaryBody(
        object="metrics",
        window=window.name,
        start=rfc3339(tally.start_us),
        end=rfc3339(tally.end_us),
        calls=calls,
        calls_per_s=round(calls * 1e6 / (tally.end_us - tally.start_us), 3),
        error_rate=_rounded(error_rate(total), 6),
        latency_ms=_latency(total),
        cache=_cache(*tally.cache.values()),
        models=[_model(tally, name) for name in models],
        slos=[slo_body(promise) for promise in found],
    )


def _model(tally: Tally, name: str) -> ModelSummary:
    counts = total_of(tally, model=name)
    calls = sum(counts.statuses.values())
    versions = sorted(counts.versions.items(), key=lambda item: (-item[1], item[0]))
    return ModelSummary(
        model=name,
        calls=calls,
        error_rate=_rounded(error_rate(counts), 6),
        latency_ms=_latency(counts),
        cache=_cache(tally.cache.get(name, {})),
        versions=[
            VersionShare(version=word, calls=number, share=round(number / calls, 6)) for word, number in versions
        ],
    )


def _latency(counts: Counts) -> LatencyBody:
    p50, p95, p99 = (_rounded(value, 3) for value in quantiles_ms(counts.good, _SHARES))
    return LatencyBody(p50=p50, p95=p95, p99=p99)


def _cache(*of_models: Mapping[str, int]) -> CacheBody:
    total: Counter[str] = Counter()
    for origins in of_models:
        total.update(origins)
    return CacheBody(
        hits=total["hit"] + total["follower"],
        misses=total["miss"],
        bypassed=total["bypass"],
        hit_rate=_rounded(hit_rate(total), 6),
    )


def _rounded(value: float | None, digits: int) -> float | None:
    return None if value is None else round(value, digits)
