"""Bring a database to the tables of this program, whoever else is doing the same.

A start on a database that is up to date costs one query; Alembic is imported only when there is something to do.
Between processes a lock decides (PostgreSQL: advisory, SQLite: a file beside the database); whoever waited looks
again and finds it done. All steps run in one transaction, so a crash in the middle leaves the database as it was.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import sqlite3
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from modelport.db.engine import Database

# Every revision that this program knows, oldest first; a test holds it against the files in migrations/versions.
REVISIONS = ("0001", "0002", "0003", "0004", "0008", "0005", "0007")
HEAD = REVISIONS[-1]
SCRIPTS = Path(__file__).parent / "migrations"
# Any number will do, as long as every version of this program uses the same one.
_ADVISORY_LOCK = 0x6D6F64656C


class DatabaseTooNew(RuntimeError):
    """The database was migrated by a newer version of the program, which this one must not write to."""

    def __init__(self, revision: str) -> None:
        super().__init__(
            f"the database is at revision {revision!r}, and this version of modelport knows none after {HEAD!r}. "
            "Start the newer version that migrated it, or restore a backup from before."
        )


@dataclass(frozen=True, slots=True)
class Migrated:
    """What `migrate` found and left; the same when nothing was to do. `before` is empty for a new database."""

    before: str
    after: str


async def migrate(db: Database, *, target: str = HEAD) -> Migrated:
    """Bring the database up to `target`; nothing when it is there already.

    Raises: DatabaseTooNew; Unavailable when it can't be reached, with nothing changed.
    """
    before = await revision_of(db)
    if before == target:
        return Migrated(before, before)
    async with _alone(db), db.begin() as conn:
        if db.dialect == "postgresql":
            await conn.execute(sa.text("SELECT pg_advisory_xact_lock(:key)"), {"key": _ADVISORY_LOCK})
        before = await _revision(conn)
        if before != target:
            await conn.run_sync(_run, "upgrade", target)
    return Migrated(before, target)


async def downgrade(db: Database, *, target: str = "base") -> None:
    """Take the database back to `target`; what only newer tables held is lost.

    Raises: DatabaseTooNew; Unavailable when it can't be reached, with nothing changed.
    """
    async with _alone(db), db.begin() as conn:
        await _revision(conn)
        await conn.run_sync(_run, "downgrade", target)


async def revision_of(db: Database) -> str:
    """The revision that the database is at; empty for a new one. Raises: DatabaseTooNew, Unavailable."""
    async with db.connect() as conn:
        return await _revision(conn)


async def _revision(conn: AsyncConnection) -> str:
    if conn.dialect.name == "sqlite":
        exists = sa.text("SELECT name FROM sqlite_master WHERE name = 'alembic_version'")
    else:
        # Read as a table of its own: to_regclass() answers from a cache that waiting for the lock leaves stale.
        exists = sa.text(
            "SELECT relname FROM pg_class WHERE relname = 'alembic_version' "
            "AND relnamespace = current_schema()::regnamespace"
        )
    if (await conn.execute(exists)).scalar() is None:
        return ""
    revision: str = (await conn.execute(sa.text("SELECT version_num FROM alembic_version"))).scalar() or ""
    if revision and revision not in REVISIONS:
        raise DatabaseTooNew(revision)
    return revision


@asynccontextmanager
async def _alone(db: Database) -> AsyncIterator[None]:
    """On SQLite: hold the lock file, and have the database in WAL mode, which must not happen twice at once."""
    if db.place.path is None:
        yield
        return
    lock = await asyncio.to_thread(_locked, db.place.path.with_name(db.place.path.name + ".migrate.lock"))
    try:
        await asyncio.to_thread(_make_wal, db.place.path)
        yield
    finally:
        os.close(lock)


def _locked(path: Path) -> int:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    return descriptor


def _make_wal(path: Path) -> None:
    # Outside SQLAlchemy, which would begin a transaction: the mode can't change within one.
    connection = sqlite3.connect(path, isolation_level=None, timeout=10)
    try:
        connection.execute("PRAGMA journal_mode=WAL")
    finally:
        connection.close()
    path.chmod(0o600)


def _run(connection: sa.Connection, verb: str, target: str) -> None:
    from alembic import command
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(SCRIPTS))
    config.set_main_option("path_separator", "os")
    config.attributes["connection"] = connection
    step: Any = getattr(command, verb)
    step(config, target)
