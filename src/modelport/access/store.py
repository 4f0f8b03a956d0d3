"""The table `api_keys` in SQL. Every query on a tenant's keys names the tenant; only the look-up by hash can't."""

from __future__ import annotations

import sys
from collections.abc import Collection, Mapping
from functools import lru_cache
from typing import Any, Literal

import sqlalchemy as sa
from sqlalchemy.engine import RowMapping
from sqlalchemy.ext.asyncio import AsyncConnection

from modelport.access.grants import CHANGEABLE
from modelport.access.model import ApiKey, Grant, KeyHolder
from modelport.calls import Budget, Caller, Limits
from modelport.db.schema import api_keys, budgets, organizations, plans, projects

Order = Literal["asc", "desc"]

_LIMITS = ("requests_per_minute", "tokens_per_minute", "concurrent_calls")
_HOLDER = (
    sa.select(
        *(api_keys.c[name] for name in ("id", "organization_id", "project_id", "mode", "scopes", "models", "operator")),
        api_keys.c.model_versions,
        *(api_keys.c[name] for name in ("allowed_ips", "expires_us", "revoked_us", *_LIMITS)),
        # An organization's own limit replaces its plan's.
        *(sa.func.coalesce(organizations.c[name], plans.c[name]).label(f"organization_{name}") for name in _LIMITS),
        organizations.c.plan_id,
        plans.c.discount_basis_points,
        # Most organizations have no budgets, and their keys are spared the second query.
        sa.exists().where(budgets.c.organization_id == organizations.c.id).label("has_budgets"),
    )
    .join_from(api_keys, organizations, api_keys.c.organization_id == organizations.c.id)
    .join(plans, organizations.c.plan_id == plans.c.id)
    .where(api_keys.c.hash == sa.bindparam("key_hash"))
)
_BUDGETS = (
    sa.select(*(budgets.c[name] for name in Budget.__slots__))
    .where(
        budgets.c.organization_id == sa.bindparam("organization"),
        sa.or_(
            budgets.c.scope.in_(("organization", "tag")),
            sa.and_(budgets.c.scope == "project", budgets.c.target == sa.bindparam("project")),
            sa.and_(budgets.c.scope == "key", budgets.c.target == sa.bindparam("key")),
        ),
    )
    .order_by(budgets.c.id)
)
_TOUCH = (
    sa.update(api_keys)
    .where(api_keys.c.id == sa.bindparam("key_id"))
    .where(sa.or_(api_keys.c.last_used_us.is_(None), api_keys.c.last_used_us < sa.bindparam("used_us")))
    .values(last_used_us=sa.bindparam("used_us"))
)


async def insert_key(conn: AsyncConnection, *, key: ApiKey) -> None:
    """Store a new key."""
    await conn.execute(
        sa.insert(api_keys).values(
            id=key.id,
            organization_id=key.organization_id,
            project_id=key.project_id,
            name=key.name,
            mode=key.grant.mode,
            prefix=key.prefix,
            last4=key.last4,
            hash=key.hash,
            operator=key.operator,
            created_us=key.created_us,
            **grant_columns(key.grant, only=CHANGEABLE),
        )
    )


async def find_holder(conn: AsyncConnection, *, key_hash: str) -> KeyHolder | None:
    """Whose key this is and what it may do; None when nobody's. One query, and one for budgets where there are any."""
    row = (await conn.execute(_HOLDER, {"key_hash": key_hash})).mappings().one_or_none()
    if row is None:
        return None
    found: tuple[Budget, ...] = ()
    if row["has_budgets"] and row["mode"] == "live":
        facts = {"organization": row["organization_id"], "project": row["project_id"], "key": row["id"]}
        found = tuple(Budget(**line) for line in (await conn.execute(_BUDGETS, facts)).mappings())
    return _holder(row, _budgets_of(found))


async def find_key(conn: AsyncConnection, *, organization_id: str, key_id: str) -> ApiKey | None:
    """The organization's key of this id."""
    query = sa.select(api_keys).where(api_keys.c.organization_id == organization_id, api_keys.c.id == key_id)
    row = (await conn.execute(query)).mappings().one_or_none()
    return None if row is None else _key(row)


async def list_keys(
    conn: AsyncConnection, *, organization_id: str, after: str | None, limit: int, order: Order
) -> list[ApiKey]:
    """Up to `limit` keys of the organization behind `after`, by creation; revoked ones among them."""
    query = sa.select(api_keys).where(api_keys.c.organization_id == organization_id)
    if after is not None:
        query = query.where(api_keys.c.id > after if order == "asc" else api_keys.c.id < after)
    query = query.order_by(api_keys.c.id.asc() if order == "asc" else api_keys.c.id.desc()).limit(limit)
    return [_key(row) for row in (await conn.execute(query)).mappings()]


async def count_active_keys(conn: AsyncConnection, *, organization_id: str) -> int:
    """How many keys of the organization are not revoked."""
    query = sa.select(sa.func.count()).where(
        api_keys.c.organization_id == organization_id, api_keys.c.revoked_us.is_(None)
    )
    return int((await conn.execute(query)).scalar_one())


async def update_key(conn: AsyncConnection, *, organization_id: str, key_id: str, values: Mapping[str, Any]) -> None:
    """Set `values` on the organization's key unless it is revoked, which nothing changes any more."""
    await conn.execute(
        sa.update(api_keys)
        .where(api_keys.c.organization_id == organization_id, api_keys.c.id == key_id)
        .where(api_keys.c.revoked_us.is_(None))
        .values(**values)
    )


async def touch_keys(conn: AsyncConnection, *, used_us: Mapping[str, int]) -> None:
    """Record when keys (by id) were last used; never backwards.

    In the order of the ids, so that two processes that touch the same keys can't lock each other out.
    """
    rows = [{"key_id": key_id, "used_us": us} for key_id, us in sorted(used_us.items())]
    if rows:
        await conn.execute(_TOUCH, rows)


async def has_project(conn: AsyncConnection, *, organization_id: str, project_id: str) -> bool:
    """Whether the organization has this project."""
    query = sa.select(projects.c.id).where(projects.c.organization_id == organization_id, projects.c.id == project_id)
    return (await conn.execute(query)).scalar() is not None


def grant_columns(grant: Grant, *, only: Collection[str]) -> dict[str, Any]:
    """These members of the grant as the table's columns. The mode is none of them, since it never changes."""
    columns: dict[str, Any] = {
        "scopes": sorted(grant.scopes),
        "models": None if grant.models is None else sorted(grant.models),
        "allowed_ips": None if grant.allowed_ips is None else list(grant.allowed_ips),
        "expires_us": grant.expires_us,
        "model_versions": dict(grant.model_versions) if grant.model_versions else None,
    }
    values = {name: columns[name] for name in only if name in columns}
    if "limits" in only:
        values |= {name: getattr(grant.limits, name) for name in _LIMITS}
    return values


def _key(row: RowMapping) -> ApiKey:
    grant = Grant(
        mode=row["mode"],
        scopes=frozenset(row["scopes"]),
        models=None if row["models"] is None else frozenset(row["models"]),
        limits=Limits(*(row[name] for name in _LIMITS)),
        allowed_ips=None if row["allowed_ips"] is None else tuple(row["allowed_ips"]),
        expires_us=row["expires_us"],
        model_versions=row["model_versions"],
    )
    names = ("id", "organization_id", "project_id", "name", "prefix", "last4", "hash", "operator", "created_us")
    return ApiKey(
        **{name: row[name] for name in names},
        grant=grant,
        last_used_us=row["last_used_us"],
        revoked_us=row["revoked_us"],
    )


def _holder(row: RowMapping, budgets: tuple[Budget, ...]) -> KeyHolder:
    """Key rings hold many of these, so what callers have in common is the same object."""
    caller = Caller(
        organization_id=sys.intern(row["organization_id"]),
        project_id=sys.intern(row["project_id"]),
        key_id=row["id"],
        mode="live" if row["mode"] == "live" else "test",
        scopes=_set_of(tuple(row["scopes"])),
        plan_id=sys.intern(row["plan_id"]),
        organization_limits=_limits_of(*(row[f"organization_{name}"] for name in _LIMITS)),
        key_limits=_limits_of(*(row[name] for name in _LIMITS)),
        models=None if row["models"] is None else _set_of(tuple(row["models"])),
        operator=row["operator"],
        discount_basis_points=row["discount_basis_points"],
        budgets=budgets,
        model_versions=row["model_versions"] or None,
    )
    allowed_ips = None if row["allowed_ips"] is None else tuple(row["allowed_ips"])
    return KeyHolder(caller, allowed_ips, row["expires_us"], row["revoked_us"])


# Bounds: a few combinations serve nearly every key, and what is dropped is only built again.
@lru_cache(maxsize=4096)
def _set_of(members: tuple[str, ...]) -> frozenset[str]:
    return frozenset(members)


@lru_cache(maxsize=4096)
def _budgets_of(found: tuple[Budget, ...]) -> tuple[Budget, ...]:
    return found


@lru_cache(maxsize=4096)
def _limits_of(requests: int | None, tokens: int | None, calls: int | None) -> Limits:
    return Limits(requests, tokens, calls)
