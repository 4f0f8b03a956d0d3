"""The first start: once, by whoever comes first, and never without its credentials."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from argon2 import PasswordHasher

from modelport.access import store
from modelport.access.rules import OPERATOR_SCOPES, SCOPES, hash_key
from modelport.access.service import KeyIssuer
from modelport.accounts.first_start import FILE_NAME, FirstStart, ensure_first_start
from modelport.calls import Caller, Limits
from modelport.db.engine import Database, open_database
from modelport.db.migrate import migrate
from modelport.db.schema import metadata, organizations, plans, registry, users
from modelport.errors import BadRequest, Conflict, NotFound, Unavailable
from modelport.kit.clock import SystemClock
from modelport.kit.ids import IdSource
from tests.store.world import open_world

BASE_URL = "http://127.0.0.1:8000"


async def start(db: Database, data_dir: Path, **replaced: Any) -> FirstStart | None:
    clock = SystemClock()
    ids = IdSource(clock)
    issue_key = replaced.get("issue_key", KeyIssuer(clock, ids).issue_full)
    return await ensure_first_start(db, clock=clock, ids=ids, data_dir=data_dir, base_url=BASE_URL, issue_key=issue_key)


async def caller_of(db: Database, secret: str) -> Caller:
    async with db.connect() as conn:
        holder = await store.find_holder(conn, key_hash=hash_key(secret).hex())
    assert holder is not None
    return holder.caller


def credential_files(folder: Path) -> list[str]:
    return [entry.name for entry in folder.iterdir() if "credentials" in entry.name]


async def rows(db: Database, table: sa.Table) -> list[dict[str, Any]]:
    async with db.connect() as conn:
        return [dict(row) for row in (await conn.execute(sa.select(table))).mappings()]


async def test_an_empty_database_gets_all_that_a_newcomer_needs(any_database: Database, tmp_path: Path) -> None:
    made = await start(any_database, tmp_path)
    assert made is not None
    live, test = await caller_of(any_database, made.api_key), await caller_of(any_database, made.test_api_key)
    assert (live.mode, live.operator, test.mode, test.operator) == ("live", True, "test", False)
    assert live.scopes == frozenset(SCOPES)
    assert test.scopes == frozenset(SCOPES) - OPERATOR_SCOPES
    assert live.organization_limits == live.key_limits == Limits()
    assert [row["name"] for row in await rows(any_database, organizations)] == ["demo"]
    tiers = {
        row["id"]: (row["requests_per_minute"], row["tokens_per_minute"], row["concurrent_calls"])
        for row in await rows(any_database, plans)
    }
    assert tiers == {"free": (60, 20_000, 4), "paid": (600, 200_000, 32), "custom": (None, None, None)}


async def test_the_credentials_are_in_a_file_for_its_owner_alone(any_database: Database, tmp_path: Path) -> None:
    made = await start(any_database, tmp_path)
    assert made is not None
    path = tmp_path / FILE_NAME
    assert path.stat().st_mode & 0o777 == 0o600
    assert json.loads(path.read_text()) == {
        "base_url": BASE_URL,
        "portal_url": BASE_URL + "/",
        "operator_email": made.operator_email,
        "operator_password": made.operator_password,
        "api_key": made.api_key,
        "test_api_key": made.test_api_key,
    }
    assert credential_files(tmp_path) == [FILE_NAME]


async def test_the_operators_password_is_stored_as_argon2id(any_database: Database, tmp_path: Path) -> None:
    made = await start(any_database, tmp_path)
    assert made is not None
    [user] = await rows(any_database, users)
    assert user["operator"]
    assert user["password_hash"].startswith("$argon2id$")
    assert PasswordHasher().verify(user["password_hash"], made.operator_password)


async def test_a_second_start_changes_nothing(any_database: Database, tmp_path: Path) -> None:
    await start(any_database, tmp_path)
    content = (tmp_path / FILE_NAME).read_bytes()
    assert await start(any_database, tmp_path) is None
    assert (tmp_path / FILE_NAME).read_bytes() == content
    (tmp_path / FILE_NAME).unlink()
    assert await start(any_database, tmp_path) is None
    assert not (tmp_path / FILE_NAME).exists()


async def test_instances_that_start_at_once_make_one_organization(database_url: str, tmp_path: Path) -> None:
    """One database and, as on several machines, a data directory each; on SQLite they share both."""
    databases = [open_database(database_url, data_dir=tmp_path, pool_size=1) for _ in range(4)]
    await migrate(databases[0])
    folders = [tmp_path / (str(number) if database_url else ".") for number in range(4)]
    made = await asyncio.gather(*(start(db, folder) for db, folder in zip(databases, folders, strict=True)))
    assert len(await rows(databases[0], organizations)) == 1
    assert sum(one is not None for one in made) == 1
    files = {path for folder in folders for path in folder.glob("*credentials*.json")}
    assert len({path.resolve() for path in files}) == 1
    for db in databases:
        await db.close()


async def test_a_start_that_died_before_the_commit_left_nothing_behind(any_database: Database, tmp_path: Path) -> None:
    async def dies(*_: object, **__: object) -> str:
        raise ConnectionAbortedError

    with pytest.raises(Unavailable):
        await start(any_database, tmp_path, issue_key=dies)
    # The registry's one row, its revision, is the migrations'.
    for table in metadata.sorted_tables:
        assert table is registry or await rows(any_database, table) == []
    (tmp_path / ".credentials-org_of_a_commit_that_never_came.json").write_text("{}")
    made = await start(any_database, tmp_path)
    assert made is not None
    assert credential_files(tmp_path) == [FILE_NAME]


async def test_a_start_that_died_after_the_commit_is_finished_by_the_next(
    any_database: Database, tmp_path: Path
) -> None:
    made = await start(any_database, tmp_path)
    [organization] = await rows(any_database, organizations)
    (tmp_path / FILE_NAME).rename(tmp_path / f".credentials-{organization['id']}.json")
    assert await start(any_database, tmp_path) == made
    assert json.loads((tmp_path / FILE_NAME).read_text())["api_key"] == made.api_key  # type: ignore[union-attr]
    assert await start(any_database, tmp_path) is None


async def test_an_organization_needs_a_plan_and_a_project_an_organization(any_database: Database) -> None:
    async with open_world(any_database) as world:
        with pytest.raises(NotFound):
            await world.accounts.create_organization("Alice", "platinum")
        with pytest.raises(NotFound):
            await world.accounts.create_project("org_missing", "x")
        with pytest.raises(NotFound):
            await world.accounts.set_plan("org_missing", "free")
        with pytest.raises(BadRequest):
            await world.accounts.create_organization("Alice", "free", limits=Limits(-1))


async def test_projects_belong_to_their_organization(any_database: Database) -> None:
    async with open_world(any_database) as world:
        alice, mallory = await world.tenant("Alice"), await world.tenant("Mallory")
        other = await world.accounts.create_project(alice.organization_id, "other")
        found = await world.accounts.list_projects(alice.organization_id)
        assert [project.id for project in found] == sorted([alice.project_id, other.id])
        theirs = await world.accounts.list_projects(mallory.organization_id)
        assert [project.id for project in theirs] == [mallory.project_id]


async def test_a_plans_id_is_taken_once(any_database: Database) -> None:
    async with open_world(any_database) as world:
        await world.accounts.create_plan("team", "Team", limits=Limits(5), discount_basis_points=1_000)
        with pytest.raises(Conflict):
            await world.accounts.create_plan("team", "Team", limits=Limits(5))
        with pytest.raises(BadRequest):
            await world.accounts.create_plan("all", "All", limits=Limits(), discount_basis_points=10_001)
