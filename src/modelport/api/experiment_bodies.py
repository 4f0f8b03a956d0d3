"""The bodies of `/v1/experiments` and `/v1/feedback`."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from modelport.experiments.evidence import Comparison, Interval
from modelport.experiments.model import Audience, Experiment, Metric, Status
from modelport.experiments.results import Results, VariantResult
from modelport.kit.clock import rfc3339
from modelport.kit.money import format_usd

EXPERIMENT_ID = "exp_0199d1c2a7f07c3e8f6b5a4d3c2b1a09"
CALL_ID = "req_0199d1c2a7f07c3e8f6b5a4d3c2b1a09"
_VARIANTS = [
    {"name": "now", "model": "iris@1", "weight": 90},
    {"name": "next", "model": "iris@2", "weight": 10},
]
_NEW: dict[str, Any] = {
    "name": "The second iris model",
    "model": "iris",
    "variants": _VARIANTS,
    "sticky": "key",
    "metric": "error_rate",
    "alpha": 0.05,
    "audience": "organization",
}
_FIELDS: dict[str, Any] = {
    "id": EXPERIMENT_ID,
    "object": "experiment",
    **_NEW,
    "status": "running",
    "created_at": "2026-11-21T09:30:00Z",
    "since": "2026-11-21T09:30:00Z",
}
_Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,40}$", examples=["next"])]
_Weight = Annotated[int, Field(ge=0, le=1_000_000, strict=True)]


class VariantBody(BaseModel):
    """One of the answers that are compared."""

    name: _Name
    model: Annotated[str, Field(max_length=264)] = Field(
        description="A model, perhaps with `@version` or `@alias`; without one, its `latest`."
    )
    weight: _Weight = Field(1, description="Its share of the calls is this of the sum of all weights.")


class ExperimentCreate(BaseModel):
    """A new experiment; it runs at once. The first variant is what the others are compared with."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": [_NEW]})

    name: Annotated[str, Field(min_length=1, max_length=200)]
    model: Annotated[str, Field(max_length=200)] = Field(description="Calls that name it without a version take part.")
    variants: Annotated[list[VariantBody], Field(min_length=2, max_length=10)]
    sticky: Annotated[str, Field(pattern=r"^(key|organization|call|tag:[^\s\x00]{1,64})$")] = Field(
        "key", description="What always gets the same variant; `tag:user` is the call's metadata `user`."
    )
    metric: Metric = Field("error_rate", description="What decides the winner.")
    alpha: Annotated[float, Field(ge=0.0001, le=0.2)] = Field(
        0.05, description="How likely at most a winner is told of where there is no difference."
    )
    audience: Audience = Field("organization", description="Whose calls; `everyone` takes an operator's key.")


class ExperimentPatch(BaseModel):
    """What is to be different. Results begin anew with new weights."""

    model_config = ConfigDict(
        extra="forbid", json_schema_extra={"examples": [{"weights": {"next": 50}}, {"status": "paused"}]}
    )

    status: Status | None = Field(None, description="`stopped` is for good.")
    weights: Annotated[dict[_Name, _Weight], Field(max_length=10)] | None = None


class ExperimentBody(BaseModel):
    """An experiment."""

    model_config = ConfigDict(json_schema_extra={"examples": [_FIELDS]})

    id: str
    object: Literal["experiment"]
    name: str
    model: str
    variants: list[VariantBody]
    sticky: str
    metric: Metric
    alpha: float
    audience: Audience
    status: Status
    created_at: str
    since: str = Field(description="When it got its present weights; results count calls from then on.")


class ExperimentList(BaseModel):
    """A page of experiments, newest first."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "object": "list",
                    "data": [_FIELDS],
                    "first_id": EXPERIMENT_ID,
                    "last_id": EXPERIMENT_ID,
                    "has_more": False,
                }
            ]
        }
    )

    object: Literal["list"]
    data: list[ExperimentBody]
    first_id: str | None
    last_id: str | None
    has_more: bool


class Measured(BaseModel):
    """A mean of `n` observations and its 95 % interval, taken by itself."""

    n: int
    mean: float | None
    low: float | None
    high: float | None


class Quantiles(BaseModel):
    """Milliseconds, of the latest calls that succeeded."""

    p50: float
    p95: float
    p99: float


class ComparisonBody(BaseModel):
    """By the experiment's metric: this variant less the first. Interval and `p_value` hold however often one looks."""

    difference: float
    low: float
    high: float
    p_value: float


class VariantResultBody(BaseModel):
    """What came of one variant's calls."""

    name: str
    calls: int
    units: int = Field(description="Different keys, tags, … among them, by `sticky`.")
    cost_usd: str
    error_rate: Measured = Field(description="Of answers with a status from 500 on.")
    latency_ms: Measured
    latency_quantiles_ms: Quantiles | None
    feedback: Measured
    comparison: ComparisonBody | None = Field(description="Null for the first, and while there is too little to tell.")


class ResultsBody(BaseModel):
    """How the variants do by now."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "object": "experiment.results",
                    "experiment": _FIELDS,
                    "variants": [],
                    "sample_ratio_p_value": 0.71,
                    "winner": None,
                    "reason": "No variant is surely better than every other one yet.",
                }
            ]
        }
    )

    object: Literal["experiment.results"]
    experiment: ExperimentBody
    variants: list[VariantResultBody]
    sample_ratio_p_value: float = Field(description="Below 0.001 calls of a variant are lost, and nobody wins.")
    winner: str | None
    reason: str = Field(description="Why there is no winner yet.")


class PromoteBody(BaseModel):
    """Which variant; the winner where none is named."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": [{}, {"variant": "next"}]})

    variant: _Name | None = None


class FeedbackCreate(BaseModel):
    """What somebody thought of an answer."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": [{"request_id": CALL_ID, "score": True}]})

    request_id: Annotated[str, Field(max_length=64)] = Field(description="The answer's `x-request-id`.")
    score: bool | Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)] = Field(
        description="From 0 to 1; false is 0, true is 1."
    )
    comment: Annotated[str, Field(max_length=2000)] = ""


class FeedbackBody(BaseModel):
    """The feedback as it is kept; of each key the last for each call."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "object": "feedback",
                    "request_id": CALL_ID,
                    "score": 1.0,
                    "comment": "",
                    "created_at": "2026-11-21T09:30:00Z",
                }
            ]
        }
    )

    object: Literal["feedback"]
    request_id: str
    score: float
    comment: str
    created_at: str


def experiment_body(experiment: Experiment) -> ExperimentBody:
    """The experiment as it is answered."""
    variants = [
        VariantBody(name=one.name, model=one.model + (f"@{one.version}" if one.version else ""), weight=one.weight)
        for one in experiment.variants
    ]
    return ExperimentBody(
        id=experiment.id,
        object="experiment",
        name=experiment.name,
        model=experiment.model,
        variants=variants,
        sticky=experiment.sticky,
        metric=experiment.metric,
        alpha=experiment.alpha,
        audience=experiment.audience,
        status=experiment.status,
        created_at=rfc3339(experiment.created_us),
        since=rfc3339(experiment.since_us),
    )


def results_body(found: Results) -> ResultsBody:
    """The results as they are answered."""
    return ResultsBody(
        object="experiment.results",
        experiment=experiment_body(found.experiment),
        variants=[_variant(one) for one in found.variants],
        sample_ratio_p_value=found.mismatch_p,
        winner=found.winner,
        reason=found.reason,
    )


def _variant(one: VariantResult) -> VariantResultBody:
    tally = one.tally
    quantiles = None
    if one.quantiles_ms is not None:
        p50, p95, p99 = one.quantiles_ms
        quantiles = Quantiles(p50=p50, p95=p95, p99=p99)
    return VariantResultBody(
        name=one.name,
        calls=tally.calls,
        units=tally.units,
        cost_usd=format_usd(tally.cost_nanos),
        error_rate=_measured(tally.errors.n, tally.errors.mean, one.error_rate),
        latency_ms=_measured(tally.latency.n, tally.latency.mean, one.latency),
        latency_quantiles_ms=quantiles,
        feedback=_measured(tally.feedback.n, tally.feedback.mean, one.feedback),
        comparison=None if one.comparison is None else _comparison(one.comparison),
    )


def _measured(n: float, mean: float | None, interval: Interval | None) -> Measured:
    low, high = (None, None) if interval is None else (interval.low, interval.high)
    return Measured(n=int(n), mean=mean, low=low, high=high)


def _comparison(found: Comparison) -> ComparisonBody:
    return ComparisonBody(
        difference=found.difference, low=found.interval.low, high=found.interval.high, p_value=found.p_value
    )
