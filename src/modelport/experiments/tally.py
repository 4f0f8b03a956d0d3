"""What came of an experiment's calls, counted in the database: sums over units, and the latest latencies."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from modelport.db.schema import feedback
from modelport.db.schema import usage_events as events
from modelport.experiments.assignment import TAG
from modelport.experiments.evidence import Sums
from modelport.experiments.model import Experiment

# Of each variant: what its quantiles are taken from.
LATEST_CALLS = 10_000
_NOTHING = Sums()
_METRICS = ("errors", "latency", "feedback")


@dataclass(frozen=True, slots=True)
class Tally:
    """One variant's calls since the experiment has its weights. `calls` are all of them; `errors` counts those that
    failed by no fault of the caller's, `latency` milliseconds of those that succeeded, `feedback` scores."""

    calls: int = 0
    units: int = 0
    cost_nanos: int = 0
    errors: Sums = _NOTHING
    latency: Sums = _NOTHING
    feedback: Sums = _NOTHING
    latencies_us: tuple[int, ...] = ()


async def tally(conn: AsyncConnection, *, experiment: Experiment) -> dict[str, Tally]:
    """By the variant's name."""
    rows = {row["arm"]: row for row in (await conn.execute(_sums(experiment))).mappings()}
    found = {}
    for variant in experiment.variants:
        arm = experiment.arm(variant)
        row = rows.get(arm)
        if row is None:
            found[variant.name] = Tally()
            continue
        sums = {name: _read(row, name) for name in _METRICS}
        latest = await conn.execute(_latest(experiment, arm))
        found[variant.name] = Tally(
            int(row["calls"]),
            int(row["units"]),
            int(row["cost"]),
            **sums,
            latencies_us=tuple(sorted(latest.scalars())),
        )
    return found


def _sums(experiment: Experiment) -> sa.Select[Any]:
    """Two levels: each unit's totals, and of these each variant's sums, squares and products."""
    scores = (
        sa.select(feedback.c.call_id, sa.func.avg(feedback.c.score).label("score"))
        .group_by(feedback.c.call_id)
        .subquery()
    )
    # One level more, since PostgreSQL takes no two expressions with parameters for equal.
    of_calls = (
        sa.select(
            events.c.experiment.label("arm"),
            _unit(experiment).label("unit"),
            events.c.status,
            events.c.latency_us,
            events.c.cost_nanos,
            scores.c.score,
        )
        .select_from(events.outerjoin(scores, scores.c.call_id == events.c.call_id))
        .where(*_of(experiment, [experiment.arm(variant) for variant in experiment.variants]))
        .subquery()
    )
    per_unit = _per_unit(of_calls).subquery()
    c = per_unit.c
    columns = [c.arm, sa.func.sum(c.calls).label("calls"), sa.func.sum(c.cost).label("cost")]
    columns.append(sa.func.count().label("units"))
    for name in _METRICS:
        n, x = c[f"{name}_n"], c[f"{name}_x"]
        columns.append(_total(n > 0, 1.0).label(f"{name}_units"))
        products = {"n": n, "x": x, "xx": x * x, "xn": x * n, "nn": n * n}
        columns += [sa.func.sum(value).label(f"{name}_s{part}") for part, value in products.items()]
    return sa.select(*columns).group_by(c.arm)


def _per_unit(of_calls: sa.Subquery) -> sa.Select[Any]:
    c = of_calls.c
    failed, succeeded, told = c.status >= 500, c.status < 400, c.score.is_not(None)
    return sa.select(
        c.arm,
        c.unit,
        sa.func.count().label("calls"),
        sa.func.sum(c.cost_nanos).label("cost"),
        _total(sa.or_(failed, succeeded), 1.0).label("errors_n"),
        _total(failed, 1.0).label("errors_x"),
        _total(succeeded, 1.0).label("latency_n"),
        _total(succeeded, c.latency_us / 1000.0).label("latency_x"),
        _total(told, 1.0).label("feedback_n"),
        _total(told, c.score).label("feedback_x"),
    ).group_by(c.arm, c.unit)


def _of(experiment: Experiment, arms: list[str]) -> list[sa.ColumnElement[bool]]:
    where = [events.c.experiment.in_(arms), events.c.started_us >= experiment.since_us]
    if experiment.audience == "organization":
        where.append(events.c.organization_id == experiment.organization_id)
    return where


def _unit(experiment: Experiment) -> sa.ColumnElement[str]:
    """As `assignment.unit_of` has it."""
    sticky = experiment.sticky
    if sticky.startswith(TAG):
        tag: sa.ColumnElement[str] = events.c.metadata[sticky[len(TAG) :]].as_string()
        return sa.func.coalesce(sa.func.nullif(tag, ""), events.c.key_id)
    columns: dict[str, sa.ColumnElement[str]] = {"call": events.c.call_id, "organization": events.c.organization_id}
    return columns.get(sticky, events.c.key_id)


def _total(where: sa.ColumnElement[bool], value: Any) -> sa.ColumnElement[float]:
    return sa.func.sum(sa.case((where, value), else_=0.0))


def _latest(experiment: Experiment, arm: str) -> sa.Select[Any]:
    query = sa.select(events.c.latency_us).where(*_of(experiment, [arm]), events.c.status < 400)
    return query.order_by(events.c.started_us.desc()).limit(LATEST_CALLS)


def _read(row: Any, name: str) -> Sums:
    parts = (row[f"{name}_s{part}"] or 0 for part in ("n", "x", "xx", "xn", "nn"))
    return Sums(int(row[f"{name}_units"] or 0), *(float(part) for part in parts))
