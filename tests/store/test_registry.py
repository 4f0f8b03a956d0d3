"""The registry's tables, the same on SQLite and PostgreSQL."""

from __future__ import annotations

import asyncio
from dataclasses import replace

from modelport.catalog import store
from modelport.catalog.registered import AddedVersion, AliasStep, Registered, Retirement
from modelport.db.engine import Database

VERSION = AddedVersion("iris", "3", "tabular", "onnx", "/a.onnx", 5, "key_1", options={"max_batch": 2})


async def read(db: Database) -> Registered:
    async with db.connect() as conn:
        return await store.read_all(conn)


async def test_what_is_stored_is_read_back(any_database: Database) -> None:
    end = Retirement("iris", "3", 1, None, "", "", 2, "key_1")
    async with any_database.begin() as conn:
        assert await store.raise_revision(conn) == 1
        await store.insert_version(conn, version=VERSION)
        for number, version in enumerate(("3", "2", "1"), 1):
            await store.insert_step(conn, step=AliasStep("iris", "latest", number, version, number, "key_1"), keep=2)
        await store.put_retirement(conn, retirement=replace(end, successor="rose"))
        await store.put_retirement(conn, retirement=end)
    found = await read(any_database)
    assert found.revision == 1
    assert found.versions == (VERSION,)
    assert [step.version for step in found.steps["iris", "latest"]] == ["1", "2"]
    assert found.retirements == (end,)


async def test_a_files_facts_are_recorded_once(any_database: Database) -> None:
    """The second machine that fetched another file does not overwrite what the first one found."""
    async with any_database.begin() as conn:
        await store.insert_version(conn, version=VERSION)
        for digest, size in (("a" * 64, 10), ("b" * 64, 20)):
            await store.record_file(conn, model="iris", version="3", sha256=digest, size_bytes=size)
    (version,) = (await read(any_database)).versions
    assert (version.sha256, version.size_bytes) == ("a" * 64, 10)


async def test_removed_versions_keep_their_name_until_it_is_let_go(any_database: Database) -> None:
    async with any_database.begin() as conn:
        await store.insert_version(conn, version=VERSION)
        await store.forget_version(conn, model="iris", version="3")
        await store.set_removed(conn, model="iris", version="3", removed=True)
    assert [version.removed for version in (await read(any_database)).versions] == [True]
    async with any_database.begin() as conn:
        await store.forget_version(conn, model="iris", version="3")
    assert (await read(any_database)).versions == ()


async def test_changes_wait_for_each_other(any_database: Database) -> None:
    """Each sees the one before it whole, however many begin at once."""

    async def add(number: int) -> None:
        async with any_database.begin() as conn:
            revision = await store.raise_revision(conn)
            known = await store.read_all(conn)
            assert len(known.versions) == revision - 1
            await store.insert_version(conn, version=replace(VERSION, version=str(number)))

    await asyncio.gather(*(add(number) for number in range(5)))
    assert (await read(any_database)).revision == 5


async def test_a_change_that_fails_leaves_no_trace(any_database: Database) -> None:
    try:
        async with any_database.begin() as conn:
            await store.raise_revision(conn)
            await store.insert_version(conn, version=VERSION)
            raise RuntimeError("in the middle")
    except RuntimeError:
        pass
    assert await read(any_database) == Registered()
