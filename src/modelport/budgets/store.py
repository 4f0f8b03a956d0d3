"""The table `budgets` in SQL, and what was spent of them, which the usage events alone know."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import sqlalchemy as sa
from sqlalchemy.engine import RowMapping
from sqlalchemy.ext.asyncio import AsyncConnection

from modelport.budgets.rules import Purse
from modelport.calls import Budget
from modelport.db.schema import api_keys, budgets, projects
from modelport.db.schema import usage_events as events

Order = Literal["asc", "desc"]
Told = Literal["approaching_us", "reached_us"]

_COLUMNS = tuple(budgets.c[name] for name in Budget.__slots__)
_TARGETS = {"project": projects, "key": api_keys}


async def insert_budget(conn: AsyncConnection, *, budget: Budget) -> None:
    """Store a new budget. Raises: IntegrityError where its target has one for this period."""
    await conn.execute(sa.insert(budgets).values({name: getattr(budget, name) for name in Budget.__slots__}))


async def find_budget(conn: AsyncConnection, *, organization_id: str, budget_id: str) -> Budget | None:
    """The organization's budget of this id."""
    query = sa.select(*_COLUMNS).where(budgets.c.organization_id == organization_id, budgets.c.id == budget_id)
    row = (await conn.execute(query)).mappings().one_or_none()
    return None if row is None else budget_of(row)


async def list_budgets(
    conn: AsyncConnection, *, organization_id: str, after: str | None, limit: int, order: Order
) -> list[Budget]:
    """Up to `limit` budgets of the organization behind `after`, by creation."""
    query = sa.select(*_COLUMNS).where(budgets.c.organization_id == organization_id)
    if after is not None:
        query = query.where(budgets.c.id > after if order == "asc" else budgets.c.id < after)
    query = query.order_by(budgets.c.id.asc() if order == "asc" else budgets.c.id.desc()).limit(limit)
    return [budget_of(row) for row in (await conn.execute(query)).mappings()]


async def count_budgets(conn: AsyncConnection, *, organization_id: str) -> int:
    """How many budgets the organization has."""
    query = sa.select(sa.func.count()).where(budgets.c.organization_id == organization_id)
    return int((await conn.execute(query)).scalar_one())


async def update_budget(
    conn: AsyncConnection, *, organization_id: str, budget_id: str, values: Mapping[str, Any]
) -> bool:
    """Set `values` on the organization's budget, and let its limits be told of anew; false where there is none."""
    result = await conn.execute(
        sa.update(budgets)
        .where(budgets.c.organization_id == organization_id, budgets.c.id == budget_id)
        .values(**values, approaching_us=None, reached_us=None)
    )
    return result.rowcount > 0


async def delete_budget(conn: AsyncConnection, *, organization_id: str, budget_id: str) -> bool:
    """Remove the organization's budget; false where there is none."""
    result = await conn.execute(
        sa.delete(budgets).where(budgets.c.organization_id == organization_id, budgets.c.id == budget_id)
    )
    return result.rowcount > 0


async def has_target(conn: AsyncConnection, *, organization_id: str, scope: str, target: str) -> bool:
    """Whether the organization has this project or key."""
    table = _TARGETS[scope]
    query = sa.select(table.c.id).where(table.c.organization_id == organization_id, table.c.id == target)
    return (await conn.execute(query)).scalar() is not None


async def mark_told(conn: AsyncConnection, *, budget_id: str, column: Told, start_us: int) -> bool:
    """Note that somebody is told of the limit in the period that began at `start_us`; false where it was done before.

    The row decides, so of many processes one tells.
    """
    known = budgets.c[column]
    result = await conn.execute(
        sa.update(budgets)
        .where(budgets.c.id == budget_id, sa.or_(known.is_(None), known != start_us))
        .values({column: start_us})
    )
    return result.rowcount > 0


async def sum_spent(conn: AsyncConnection, *, purse: Purse) -> int:
    """Nano-dollars that the purse's calls cost, of all that are recorded."""
    budget = purse.budget
    query = sa.select(sa.func.coalesce(sa.func.sum(events.c.cost_nanos), 0)).where(
        events.c.organization_id == budget.organization_id, events.c.started_us >= purse.start_us
    )
    if purse.end_us is not None:
        query = query.where(events.c.started_us < purse.end_us)
    if budget.scope == "project":
        query = query.where(events.c.project_id == budget.target)
    elif budget.scope == "key":
        query = query.where(events.c.key_id == budget.target)
    elif budget.scope == "tag":
        name, _, value = budget.target.partition("=")
        query = query.where(events.c.metadata[name].as_string() == value)
    return int((await conn.execute(query)).scalar_one())


def budget_of(row: RowMapping) -> Budget:
    """The row as it is passed around."""
    return Budget(**{name: row[name] for name in Budget.__slots__})
