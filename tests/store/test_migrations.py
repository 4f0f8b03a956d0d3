"""The migrations build exactly `schema.py`, once, whoever else is starting, and go back the way they came."""

from __future__ import annotations

import asyncio
import re
import subprocess
import sys
from pathlib import Path

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory

from modelport.db.engine import Database, open_database
from modelport.db.migrate import HEAD, REVISIONS, SCRIPTS, DatabaseTooNew, Migrated, downgrade, migrate, revision_of
from modelport.db.schema import metadata

# Starts on an empty database and says what it found and whether it had to load Alembic.
_START = """
import asyncio, pathlib, sys
from modelport.db.engine import open_database
from modelport.db.migrate import migrate
async def main():
    db = open_database(sys.argv[1], data_dir=pathlib.Path(sys.argv[2]), pool_size=1)
    done = await migrate(db)
    await db.close()
    print(done.before or "nothing", "alembic" in sys.modules)
asyncio.run(main())
"""


async def tables(db: Database) -> set[str]:
    async with db.connect() as conn:
        return set(await conn.run_sync(lambda sync: sa.inspect(sync).get_table_names()))


async def test_the_migrations_build_exactly_the_schema(any_database: Database) -> None:
    def differences(conn: sa.Connection) -> list[object]:
        context = MigrationContext.configure(conn, opts={"compare_type": True, "compare_server_default": False})
        return list(compare_metadata(context, metadata))

    async with any_database.connect() as conn:
        assert await conn.run_sync(differences) == []


async def test_up_down_and_up_again(any_database: Database) -> None:
    assert await revision_of(any_database) == HEAD
    for revision in reversed(("base", *REVISIONS[:-1])):
        await downgrade(any_database, target=revision)
    assert await tables(any_database) == {"alembic_version"}
    assert await migrate(any_database) == Migrated("", HEAD)
    assert set(metadata.tables) < await tables(any_database)


async def test_a_second_start_has_nothing_to_do(any_database: Database) -> None:
    assert await migrate(any_database) == Migrated(HEAD, HEAD)


async def test_processes_that_start_at_once_build_it_once(database_url: str, tmp_path: Path) -> None:
    command = [sys.executable, "-c", _START, database_url, str(tmp_path)]
    pipe = asyncio.subprocess.PIPE
    started = [await asyncio.create_subprocess_exec(*command, stdout=pipe) for _ in range(4)]
    said = [(await process.communicate())[0].decode().split() for process in started]
    assert [process.returncode for process in started] == [0, 0, 0, 0]
    assert sorted(before for before, _ in said).count("nothing") == 1
    db = open_database(database_url, data_dir=tmp_path, pool_size=1)
    assert set(metadata.tables) < await tables(db)
    await db.close()


def test_a_start_with_nothing_to_do_does_not_load_alembic(tmp_path: Path) -> None:
    command = [sys.executable, "-c", _START, "", str(tmp_path)]
    first, second = (subprocess.run(command, capture_output=True, text=True, check=True).stdout for _ in range(2))
    assert first.split() == ["nothing", "True"]
    assert second.split() == [HEAD, "False"]


async def test_a_database_of_a_newer_version_is_left_alone(any_database: Database) -> None:
    async with any_database.begin() as conn:
        await conn.execute(sa.text("UPDATE alembic_version SET version_num = '9999'"))
    with pytest.raises(DatabaseTooNew, match="newer version"):
        await migrate(any_database)
    with pytest.raises(DatabaseTooNew):
        await downgrade(any_database)
    assert set(metadata.tables) < await tables(any_database)


def test_the_list_of_revisions_is_the_scripts_in_order() -> None:
    scripts = ScriptDirectory(str(SCRIPTS)).walk_revisions()
    assert tuple(script.revision for script in reversed(list(scripts))) == REVISIONS
    names = sorted(path.name for path in (SCRIPTS / "versions").glob("*.py"))
    # Each bears its own number; which one follows which is up to the scripts.
    assert [name[:4] for name in names] == sorted(REVISIONS)
    assert all(re.fullmatch(r"\d{4}_[a-z_]+\.py", name) for name in names)


async def test_the_sqlite_file_is_in_wal_mode_and_for_its_owner_alone(tmp_path: Path) -> None:
    db = open_database("", data_dir=tmp_path / "new", pool_size=1)
    await migrate(db)
    async with db.connect() as conn:
        # A connection looks at the file, and so at its mode, with its first statement that reads.
        await conn.execute(sa.text("SELECT * FROM alembic_version"))
        assert (await conn.execute(sa.text("PRAGMA journal_mode"))).scalar() == "wal"
    assert (tmp_path / "new" / "modelport.db").stat().st_mode & 0o777 == 0o600
    await db.close()
