"""Insert what is not there yet, the same way on both databases."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.ext.asyncio import AsyncConnection


async def insert_new(conn: AsyncConnection, table: sa.Table, *, rows: Sequence[Mapping[str, Any]]) -> None:
    """Insert `rows`, leaving out those whose key (primary or unique) is taken, by another row or by each other.

    One prepared statement whatever the number of rows. All rows have the same columns.
    """
    if rows:
        on_sqlite = conn.dialect.name == "sqlite"
        insert = sqlite.insert(table) if on_sqlite else postgresql.insert(table)
        await conn.execute(insert.on_conflict_do_nothing(), list(rows))
