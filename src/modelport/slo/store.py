"""The table of counts: calls by slot, added to by every worker of every instance.

A slot is a minute, kept for a few hours, or an hour, kept for the longest window; each call is counted in both.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.ext.asyncio import AsyncConnection

from modelport.db.inserts import insert_new
from modelport.db.schema import service_counts as table
from modelport.observe.counts import CACHE, CALL, CountKey
from modelport.slo.model import HOUR_S, MINUTE_S, Counts, Tally, Window
from modelport.slo.rules import LOWEST_FAULT, minutes_between, slot_of, window_start

UP = "up"
# When the first worker of the first instance came up: a minute before it was not missed by anybody.
_BEGAN = "began"
_KEY = [column.name for column in table.primary_key.columns]
_SECOND_US = 1_000_000


async def add_counts(conn: AsyncConnection, *, counts: Mapping[tuple[int, CountKey], int]) -> None:
    """Add calls, by the minute they ended in, to that minute's slots and its hour's."""
    added: dict[tuple[Any, ...], int] = {}
    for (minute_us, key), calls in counts.items():
        for width_s in (MINUTE_S, HOUR_S):
            place = (width_s, slot_of(minute_us, width_s), *key)
            added[place] = added.get(place, 0) + calls
    if added:
        # In one order everywhere, so that no two workers wait for each other's rows.
        rows = [dict(zip(_KEY, place, strict=True)) | {"calls": calls} for place, calls in sorted(added.items())]
        insert = sqlite.insert(table) if conn.dialect.name == "sqlite" else postgresql.insert(table)
        upsert = insert.on_conflict_do_update(
            index_elements=_KEY, set_={"calls": table.c.calls + insert.excluded.calls}
        )
        await conn.execute(upsert, rows)


async def mark_up(conn: AsyncConnection, *, now_us: int) -> None:
    """Note that somebody took calls in this minute; however many say so, the hour gets one more."""
    minute_us = slot_of(now_us, MINUTE_S)
    key = CountKey(UP, "", "", "", "", 0)
    row = {"width_s": MINUTE_S, "slot_us": minute_us, **key._asdict(), "calls": 1}
    insert = sqlite.insert(table) if conn.dialect.name == "sqlite" else postgresql.insert(table)
    first = await conn.execute(insert.values(row).on_conflict_do_nothing())
    if first.rowcount == 1:
        hour = {**row, "width_s": HOUR_S, "slot_us": slot_of(now_us, HOUR_S)}
        more = {"calls": table.c.calls + 1}
        await conn.execute(insert.values(hour).on_conflict_do_update(index_elements=_KEY, set_=more))


async def ensure_began(conn: AsyncConnection, *, now_us: int) -> None:
    """Keep when the platform first came up."""
    if await _began_us(conn) is None:
        row = {"width_s": 0, "slot_us": slot_of(now_us, MINUTE_S), **CountKey(_BEGAN, "", "", "", "", 0)._asdict()}
        await insert_new(conn, table, rows=[row | {"calls": 0}])


async def read_window(conn: AsyncConnection, window: Window, *, now_us: int) -> Tally:
    """All that was counted in a window that ends now."""
    start_us = window_start(window, now_us)
    columns = [getattr(table.c, name) for name in CountKey._fields]
    query = (
        sa.select(*columns, sa.func.sum(table.c.calls))
        .where(table.c.width_s == window.width_s, table.c.slot_us >= start_us)
        .group_by(*columns)
    )
    tally = Tally(start_us, now_us)
    for *key, calls in await conn.execute(query):
        _sort_in(tally, CountKey(*key), int(calls))
    began_us = await _began_us(conn)
    if began_us is not None:
        tally.minutes = minutes_between(max(start_us, began_us), now_us)
    return tally


async def prune(conn: AsyncConnection, *, before_us: Iterable[tuple[int, int]]) -> None:
    """Remove slots that no window reaches any more: of each width those that begin before an instant."""
    for width_s, instant_us in before_us:
        await conn.execute(sa.delete(table).where(table.c.width_s == width_s, table.c.slot_us < instant_us))


async def _began_us(conn: AsyncConnection) -> int | None:
    query = sa.select(sa.func.min(table.c.slot_us)).where(table.c.width_s == 0, table.c.kind == _BEGAN)
    found: int | None = await conn.scalar(query)
    return found


def _sort_in(tally: Tally, key: CountKey, calls: int) -> None:
    if key.kind == UP:
        tally.minutes_up += calls
    elif key.kind == CACHE:
        tally.cache.setdefault(key.model, Counter())[key.outcome] += calls
    elif key.kind == CALL:
        status = int(key.outcome)
        counts = tally.calls.setdefault((key.model, key.endpoint), Counts())
        counts.statuses[status] += calls
        counts.versions[key.version] += calls
        if status < LOWEST_FAULT:
            counts.good[key.stretch] += calls
