"""The registry's tables in SQL."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import RowMapping
from sqlalchemy.ext.asyncio import AsyncConnection

from modelport.catalog.registered import AddedVersion, AliasStep, Registered, Retirement
from modelport.db.schema import model_aliases, model_retirements, model_versions, registry

_ACTIVE, _REMOVED = "active", "removed"


async def read_revision(conn: AsyncConnection) -> int:
    """The number of the last change."""
    return int((await conn.execute(sa.select(registry.c.revision))).scalar_one())


async def raise_revision(conn: AsyncConnection) -> int:
    """Begin a change: the next number. Until the transaction ends, every other change waits here."""
    query = sa.update(registry).values(revision=registry.c.revision + 1).returning(registry.c.revision)
    return int((await conn.execute(query)).scalar_one())


async def read_all(conn: AsyncConnection) -> Registered:
    """Everything, as of one revision."""
    revision = await read_revision(conn)
    versions = sa.select(model_versions).order_by(model_versions.c.created_us, model_versions.c.version)
    order = (model_aliases.c.model, model_aliases.c.alias, model_aliases.c.number.desc())
    steps: dict[tuple[str, str], list[AliasStep]] = {}
    for row in (await conn.execute(sa.select(model_aliases).order_by(*order))).mappings():
        steps.setdefault((row["model"], row["alias"]), []).append(AliasStep(**row))
    ends = sa.select(model_retirements).order_by(model_retirements.c.model, model_retirements.c.version)
    return Registered(
        revision,
        versions=tuple(_version(row) for row in (await conn.execute(versions)).mappings()),
        steps={key: tuple(found) for key, found in steps.items()},
        retirements=tuple(Retirement(**row) for row in (await conn.execute(ends)).mappings()),
    )


async def insert_version(conn: AsyncConnection, *, version: AddedVersion) -> None:
    """Store a new version."""
    await conn.execute(sa.insert(model_versions).values(_columns(version)))


async def set_removed(conn: AsyncConnection, *, model: str, version: str, removed: bool) -> None:
    """Take a version out of service, or back into it."""
    await conn.execute(
        sa.update(model_versions)
        .where(model_versions.c.model == model, model_versions.c.version == version)
        .values(status=_REMOVED if removed else _ACTIVE)
    )


async def forget_version(conn: AsyncConnection, *, model: str, version: str) -> None:
    """Let go of a removed version's name."""
    await conn.execute(
        sa.delete(model_versions).where(
            model_versions.c.model == model,
            model_versions.c.version == version,
            model_versions.c.status == _REMOVED,
        )
    )


async def record_file(conn: AsyncConnection, *, model: str, version: str, sha256: str, size_bytes: int) -> None:
    """What a version's file turned out to be; whoever comes first decides."""
    await conn.execute(
        sa.update(model_versions)
        .where(model_versions.c.model == model, model_versions.c.version == version)
        .where(sa.or_(model_versions.c.sha256.is_(None), model_versions.c.size_bytes.is_(None)))
        .values(sha256=sa.func.coalesce(model_versions.c.sha256, sha256), size_bytes=size_bytes)
    )


async def insert_step(conn: AsyncConnection, *, step: AliasStep, keep: int) -> None:
    """An alias means another version from now on; of earlier meanings the last `keep` stay."""
    await conn.execute(sa.insert(model_aliases).values(asdict(step)))
    await conn.execute(
        sa.delete(model_aliases).where(
            model_aliases.c.model == step.model,
            model_aliases.c.alias == step.alias,
            model_aliases.c.number <= step.number - keep,
        )
    )


async def delete_aliases(conn: AsyncConnection, *, model: str) -> None:
    """Forget every meaning of a model's aliases."""
    await conn.execute(sa.delete(model_aliases).where(model_aliases.c.model == model))


async def put_retirement(conn: AsyncConnection, *, retirement: Retirement) -> None:
    """Announce an end, in place of the one that was announced before."""
    await delete_retirement(conn, model=retirement.model, version=retirement.version)
    await conn.execute(sa.insert(model_retirements).values(asdict(retirement)))


async def delete_retirement(conn: AsyncConnection, *, model: str, version: str) -> bool:
    """Take an announcement back; false where there was none."""
    result = await conn.execute(
        sa.delete(model_retirements).where(model_retirements.c.model == model, model_retirements.c.version == version)
    )
    return result.rowcount > 0


def _columns(version: AddedVersion) -> dict[str, Any]:
    columns = asdict(version)
    columns["status"] = _REMOVED if columns.pop("removed") else _ACTIVE
    return columns


def _version(row: RowMapping) -> AddedVersion:
    columns = dict(row)
    removed = columns.pop("status") == _REMOVED
    return AddedVersion(**columns, removed=removed)
