"""Plans, organizations, projects and users in SQL."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import RowMapping
from sqlalchemy.ext.asyncio import AsyncConnection

from modelport.accounts.model import FIRST_PLANS, Organization, Plan, Project
from modelport.calls import Limits
from modelport.db.inserts import insert_new
from modelport.db.schema import organizations, plans, projects, users

# Any number will do, as long as every process that starts first uses the same one.
_FIRST_START_LOCK = 0x6D6F6466


async def lock_first_start(conn: AsyncConnection) -> None:
    """Wait until this transaction alone decides whether the database is new.

    SQLite needs nothing: a transaction that writes is alone already.
    """
    if conn.dialect.name == "postgresql":
        await conn.execute(sa.text("SELECT pg_advisory_xact_lock(:key)"), {"key": _FIRST_START_LOCK})


async def has_organizations(conn: AsyncConnection) -> bool:
    """Whether the installation has begun."""
    return (await conn.execute(sa.select(organizations.c.id).limit(1))).scalar() is not None


async def insert_first_plans(conn: AsyncConnection, *, now_us: int) -> None:
    """The plans of a new installation; those that are there already stay as they are."""
    rows = [
        {"id": id_, "name": name, "created_us": now_us, **_limit_columns(limits)} for id_, name, limits in FIRST_PLANS
    ]
    await insert_new(conn, plans, rows=rows)


async def insert_plan(conn: AsyncConnection, *, plan: Plan) -> None:
    await conn.execute(
        sa.insert(plans).values(
            id=plan.id,
            name=plan.name,
            discount_basis_points=plan.discount_basis_points,
            created_us=plan.created_us,
            **_limit_columns(plan.limits),
        )
    )


async def find_plan(conn: AsyncConnection, *, plan_id: str) -> Plan | None:
    row = (await conn.execute(sa.select(plans).where(plans.c.id == plan_id))).mappings().one_or_none()
    if row is None:
        return None
    return Plan(row["id"], row["name"], _limits(row), row["discount_basis_points"], row["created_us"])


async def insert_organization(conn: AsyncConnection, *, organization: Organization) -> None:
    await conn.execute(
        sa.insert(organizations).values(
            id=organization.id,
            name=organization.name,
            plan_id=organization.plan_id,
            created_us=organization.created_us,
            **_limit_columns(organization.limits),
        )
    )


async def find_organization(conn: AsyncConnection, *, organization_id: str) -> Organization | None:
    query = sa.select(organizations).where(organizations.c.id == organization_id)
    row = (await conn.execute(query)).mappings().one_or_none()
    if row is None:
        return None
    return Organization(row["id"], row["name"], row["plan_id"], _limits(row), row["created_us"])


async def update_organization(conn: AsyncConnection, *, organization_id: str, plan_id: str, limits: Limits) -> None:
    """Set plan and limits of one organization."""
    await conn.execute(
        sa.update(organizations)
        .where(organizations.c.id == organization_id)
        .values(plan_id=plan_id, **_limit_columns(limits))
    )


async def insert_project(conn: AsyncConnection, *, project: Project) -> None:
    await conn.execute(
        sa.insert(projects).values(
            id=project.id,
            organization_id=project.organization_id,
            name=project.name,
            created_us=project.created_us,
        )
    )


async def list_projects(conn: AsyncConnection, *, organization_id: str) -> list[Project]:
    """The organization's projects, oldest first."""
    query = sa.select(projects).where(projects.c.organization_id == organization_id).order_by(projects.c.id)
    rows = (await conn.execute(query)).mappings()
    return [Project(row["id"], row["organization_id"], row["name"], row["created_us"]) for row in rows]


async def insert_user(
    conn: AsyncConnection, *, id: str, email: str, password_hash: str, operator: bool, created_us: int
) -> None:
    await conn.execute(
        sa.insert(users).values(
            id=id, email=email, password_hash=password_hash, operator=operator, created_us=created_us
        )
    )


def _limit_columns(limits: Limits) -> dict[str, Any]:
    return {
        "requests_per_minute": limits.requests_per_minute,
        "tokens_per_minute": limits.tokens_per_minute,
        "concurrent_calls": limits.concurrent_calls,
    }


def _limits(row: RowMapping) -> Limits:
    return Limits(row["requests_per_minute"], row["tokens_per_minute"], row["concurrent_calls"])
