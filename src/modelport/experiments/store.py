"""The tables `experiments` and `feedback` in SQL."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import RowMapping
from sqlalchemy.ext.asyncio import AsyncConnection

from modelport.db.schema import experiments, feedback, usage_events
from modelport.experiments.model import Experiment, Feedback, Variant

_COLUMNS = tuple(experiments.c[name] for name in Experiment.__slots__)


async def insert_experiment(conn: AsyncConnection, *, experiment: Experiment) -> None:
    """Store a new one. Raises: IntegrityError where its slot is taken."""
    values = asdict(experiment) | {"slot": experiment.slot}
    await conn.execute(sa.insert(experiments).values(values))


async def update_experiment(conn: AsyncConnection, *, experiment: Experiment) -> None:
    """Set what can change: status, weights, and since when these hold. One that was stopped is left as it is."""
    values: Mapping[str, Any] = {
        "status": experiment.status,
        "variants": [asdict(variant) for variant in experiment.variants],
        "since_us": experiment.since_us,
        "slot": None if experiment.status == "stopped" else experiment.slot,
    }
    own = experiments.c.id == experiment.id
    await conn.execute(sa.update(experiments).where(own, experiments.c.status != "stopped").values(**values))


async def find_experiment(conn: AsyncConnection, *, organization_id: str, experiment_id: str) -> Experiment | None:
    """The organization's experiment of this id."""
    query = sa.select(*_COLUMNS).where(
        experiments.c.organization_id == organization_id, experiments.c.id == experiment_id
    )
    row = (await conn.execute(query)).mappings().one_or_none()
    return None if row is None else _experiment(row)


async def list_experiments(
    conn: AsyncConnection, *, organization_id: str, after: str | None, limit: int
) -> list[Experiment]:
    """Up to `limit` of the organization's behind `after`, newest first."""
    query = sa.select(*_COLUMNS).where(experiments.c.organization_id == organization_id)
    if after is not None:
        query = query.where(experiments.c.id < after)
    rows = await conn.execute(query.order_by(experiments.c.id.desc()).limit(limit))
    return [_experiment(row) for row in rows.mappings()]


async def list_running(conn: AsyncConnection) -> list[Experiment]:
    """Every organization's that take calls now."""
    query = sa.select(*_COLUMNS).where(experiments.c.slot.is_not(None), experiments.c.status == "running")
    return [_experiment(row) for row in (await conn.execute(query.order_by(experiments.c.id))).mappings()]


async def count_unfinished(conn: AsyncConnection, *, organization_id: str) -> int:
    """How many the organization has that were not stopped."""
    query = sa.select(sa.func.count()).where(
        experiments.c.organization_id == organization_id, experiments.c.slot.is_not(None)
    )
    return int((await conn.execute(query)).scalar_one())


async def has_call(conn: AsyncConnection, *, organization_id: str, call_id: str) -> bool:
    """Whether the organization made this call."""
    query = sa.select(usage_events.c.call_id).where(
        usage_events.c.call_id == call_id, usage_events.c.organization_id == organization_id
    )
    return (await conn.execute(query)).scalar() is not None


async def put_feedback(conn: AsyncConnection, *, given: Feedback) -> None:
    """Store it in the place of what the same key said of the same call before."""
    on_sqlite = conn.dialect.name == "sqlite"
    insert = sqlite.insert(feedback) if on_sqlite else postgresql.insert(feedback)
    values = asdict(given)
    later = {name: values[name] for name in ("score", "comment", "created_us")}
    await conn.execute(insert.values(values).on_conflict_do_update(index_elements=["call_id", "key_id"], set_=later))


def _experiment(row: RowMapping) -> Experiment:
    values = {name: row[name] for name in Experiment.__slots__}
    return Experiment(**values | {"variants": tuple(Variant(**one) for one in row["variants"])})
