"""The database: one way in for SQLite and PostgreSQL, and the one place that knows which it is.

SQLite runs in WAL mode: readers never wait, and one process has one writing connection, whose waiting list is the
pool's, so that writers of a process queue in order instead of polling the file's lock against each other. Between
processes SQLite's own busy timeout decides.
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy import event, exc
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine
from sqlalchemy.pool import ConnectionPoolEntry

from modelport.db.urls import Place, find_place
from modelport.errors import Unavailable

# Another process may be in the middle of a large batch; longer than this, something is stuck.
SQLITE_BUSY_TIMEOUT_S = 10.0
# Readers of one process. Each is a thread, and a query takes well under a millisecond.
SQLITE_READERS = 4
POOL_TIMEOUT_S = 10.0
CONNECT_TIMEOUT_S = 5.0
# For a connection that is known to work: its turn in the pool and the question whether the server still answers, which
# a server that hangs with its connections open never does.
PATIENCE_S = 6.0
# Above the slowest report; below it, a server that answers nothing at all would hold its callers for ever.
COMMAND_TIMEOUT_S = 60.0


class Database:
    """Connections for reading and for writing.

    Concurrency: used by the tasks of one event loop. Every connection is a transaction: `begin` commits at its end
    and rolls back on an error; `connect` sees one state of the data throughout and never writes.
    """

    def __init__(
        self, place: Place, *, writer: AsyncEngine, reader: AsyncEngine, patience_s: float | None = None
    ) -> None:
        self.place = place
        self._patience_s = patience_s
        self._writer = writer
        self._reader = reader

    @property
    def dialect(self) -> str:
        """`sqlite` or `postgresql`."""
        return self.place.dialect

    @asynccontextmanager
    async def begin(self) -> AsyncIterator[AsyncConnection]:
        """A transaction that writes. Keep it short, and await nothing in it but the database.

        Raises: Unavailable when the database can't be reached or its connection is lost (the transaction is then
        rolled back, or, when that happens within the commit, of unknown outcome); IntegrityError as it is.
        """
        with _translated():
            async with AsyncExitStack() as stack:
                with _connecting():
                    async with asyncio.timeout(self._patience_s):
                        conn = await stack.enter_async_context(self._writer.begin())
                yield conn

    @asynccontextmanager
    async def connect(self) -> AsyncIterator[AsyncConnection]:
        """A transaction that only reads. Raises: Unavailable, as `begin`."""
        with _translated():
            async with AsyncExitStack() as stack:
                with _connecting():
                    async with asyncio.timeout(self._patience_s):
                        conn = await stack.enter_async_context(self._reader.connect())
                yield conn

    async def ping(self) -> None:
        """Return when the database answers. Raises: Unavailable."""
        async with self.connect() as conn:
            await conn.execute(sa.text("SELECT 1"))

    async def close(self) -> None:
        """Close every connection. Idempotent."""
        await self._reader.dispose()
        await self._writer.dispose()


def open_database(url: str, *, data_dir: Path, pool_size: int) -> Database:
    """The database at `url` (`postgresql://…`, `sqlite:///PATH`, or empty for `modelport.db` in `data_dir`).

    Nothing is connected yet. Raises: ValueError for a URL of another kind.
    """
    place = find_place(url, data_dir=data_dir)
    if place.path is not None:
        place.path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        writer = _sqlite_engine(place, connections=1, begin="BEGIN IMMEDIATE", query_only=False)
        reader = _sqlite_engine(place, connections=SQLITE_READERS, begin="BEGIN", query_only=True)
        return Database(place, writer=writer, reader=reader)
    return _open_server(place, pool_size=pool_size)


def _open_server(place: Place, *, pool_size: int) -> Database:
    engine = create_async_engine(
        place.url,
        pool_size=pool_size,
        max_overflow=0,
        pool_timeout=POOL_TIMEOUT_S,
        # A server that was restarted is noticed here and not by a customer.
        pool_pre_ping=True,
        connect_args={"timeout": CONNECT_TIMEOUT_S, "command_timeout": COMMAND_TIMEOUT_S, **place.connect_args},
    )
    # The same connections; the server is told with each BEGIN, so it costs no round trip.
    reader = engine.execution_options(isolation_level="REPEATABLE READ", postgresql_readonly=True)
    return Database(place, writer=engine, reader=reader, patience_s=PATIENCE_S)


def _sqlite_engine(place: Place, *, connections: int, begin: str, query_only: bool) -> AsyncEngine:
    engine = create_async_engine(
        place.url,
        pool_size=connections,
        max_overflow=0,
        pool_timeout=POOL_TIMEOUT_S,
        connect_args={"timeout": SQLITE_BUSY_TIMEOUT_S},
    )

    def on_connect(connection: Any, _entry: ConnectionPoolEntry) -> None:
        # The driver would begin transactions by itself, and late; ours begin where we say.
        connection.isolation_level = None
        cursor = connection.cursor()
        # Migrating makes it WAL once and for all; until then these hold as well.
        for pragma in ("foreign_keys=ON", "synchronous=NORMAL", f"query_only={'ON' if query_only else 'OFF'}"):
            cursor.execute(f"PRAGMA {pragma}")
        cursor.close()

    def on_begin(connection: sa.Connection) -> None:
        connection.exec_driver_sql(begin)

    event.listen(engine.sync_engine, "connect", on_connect)
    event.listen(engine.sync_engine, "begin", on_begin)
    return engine


@contextmanager
def _connecting() -> Iterator[None]:
    """What goes wrong before there is a connection is always the server's or the network's doing."""
    try:
        yield
    except (exc.DBAPIError, exc.TimeoutError, OSError) as error:
        raise _unavailable(error) from error


@contextmanager
def _translated() -> Iterator[None]:
    """Turn the drivers' ways of saying "not now" into one of ours; leave every other error as it is."""
    try:
        yield
    except exc.OperationalError as error:
        # SQLite's plain "error" is a statement that is wrong, which waiting does not mend.
        if getattr(error.orig, "sqlite_errorcode", None) == sqlite3.SQLITE_ERROR:
            raise
        raise _unavailable(error) from error
    except (exc.InterfaceError, exc.TimeoutError, ConnectionError, TimeoutError) as error:
        raise _unavailable(error) from error
    except exc.DBAPIError as error:
        if not error.connection_invalidated:
            raise
        raise _unavailable(error) from error


def _unavailable(error: BaseException) -> Unavailable:
    return Unavailable("The database can't be reached for a moment.", internal=f"database: {error!r:.500}")
