"""SQL of metering: usage events in, prices in and out."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence
from typing import Any

import msgspec
import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import Dialect
from sqlalchemy.ext.asyncio import AsyncConnection

from modelport.db.schema import prices, usage_events
from modelport.metering.model import Attempt, Price, UsageEvent

# Columns that hold words of an upstream's own are cut to their size; every other value is ours.
_MAX_CODE = 80
_MAX_VERSION = 80
_NAMES = UsageEvent.__struct_fields__
_CODE, _VERSION = _NAMES.index("error_code"), _NAMES.index("version")
_METADATA, _ATTEMPTS = _NAMES.index("metadata"), _NAMES.index("attempts")
_PRICE_COLUMNS = tuple(column for column in prices.c if column.name != "created_us")


async def insert_events(conn: AsyncConnection, events: Iterable[UsageEvent]) -> None:
    """Insert what is not there yet; the call id decides.

    Goes to the driver without SQLAlchemy's own look at each row, which costs ten times what the insert does.
    """
    await conn.exec_driver_sql(_insert_statement(conn.dialect), [_row(event) for event in events])


@functools.lru_cache(maxsize=4)
def _insert_statement(dialect: Dialect) -> str:
    insert = sqlite.insert if dialect.name == "sqlite" else postgresql.insert
    statement = insert(usage_events).on_conflict_do_nothing()
    compiled = statement.compile(dialect=dialect, column_keys=list(_NAMES))
    # The struct's members are in the table's order, so a row is the struct as a tuple.
    if tuple(compiled.positiontup or ()) != _NAMES:
        raise AssertionError("UsageEvent and the table usage_events differ")
    return str(compiled)


def _row(event: UsageEvent) -> tuple[Any, ...]:
    row = list(msgspec.structs.astuple(event))
    if row[_CODE] is not None:
        row[_CODE] = _text(row[_CODE], _MAX_CODE)
    row[_VERSION] = _text(row[_VERSION], _MAX_VERSION)
    row[_METADATA] = "{}" if not event.metadata else _json(event.metadata)
    if event.attempts is not None:
        row[_ATTEMPTS] = msgspec.json.encode([msgspec.structs.asdict(attempt) for attempt in event.attempts]).decode()
    return tuple(row)


def _text(text: str, most: int) -> str:
    # PostgreSQL takes no NUL in text.
    return text[:most].replace("\0", "")


def _json(metadata: dict[str, str]) -> str:
    text = msgspec.json.encode(metadata).decode()
    if "\\u0000" in text:
        text = msgspec.json.encode({k.replace("\0", ""): v.replace("\0", "") for k, v in metadata.items()}).decode()
    return text


async def find_event(conn: AsyncConnection, *, organization_id: str, call_id: str) -> UsageEvent | None:
    """One call of this organization."""
    query = sa.select(usage_events).where(
        usage_events.c.call_id == call_id, usage_events.c.organization_id == organization_id
    )
    row = (await conn.execute(query)).mappings().one_or_none()
    if row is None:
        return None
    attempts = None if row["attempts"] is None else [Attempt(**attempt) for attempt in row["attempts"]]
    return UsageEvent(**{**row, "attempts": attempts})


async def list_prices(conn: AsyncConnection) -> list[Price]:
    """Every price there ever was, oldest first."""
    query = sa.select(*_PRICE_COLUMNS).order_by(prices.c.valid_from_us)
    return [Price(**row) for row in (await conn.execute(query)).mappings()]


async def find_price(conn: AsyncConnection, price_id: str) -> Price | None:
    """One price, whether it still holds or not."""
    row = (await conn.execute(sa.select(*_PRICE_COLUMNS).where(prices.c.id == price_id))).mappings().one_or_none()
    return None if row is None else Price(**row)


async def lock_prices(conn: AsyncConnection) -> None:
    """Let nobody else write prices until the transaction ends. SQLite's writers are alone anyway."""
    if conn.dialect.name == "postgresql":
        await conn.execute(sa.text("LOCK TABLE prices IN SHARE ROW EXCLUSIVE MODE"))


async def insert_prices(conn: AsyncConnection, rows: Sequence[Price], *, now_us: int) -> None:
    """Add dated rows; what was there stays."""
    if rows:
        names = [column.name for column in _PRICE_COLUMNS]
        values = [{**{name: getattr(row, name) for name in names}, "created_us": now_us} for row in rows]
        await conn.execute(sa.insert(prices), values)
