"""Questions about usage: totals and percentiles by period and group, the same on both databases.

Durations are counted in stretches 2 % wide (`rules.resolution`), so a percentile is at most 1 % from the truth, no
sorting of events is needed, and nothing but counts leaves the database.
"""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from modelport.db.schema import usage_events as events
from modelport.errors import BadRequest
from modelport.kit.calendar import Bucket, bucket_end, bucket_start, fixed_bucket_us
from modelport.metering.rules import RESOLUTION_STEPS, quantiles

# Rows of one answer; about 4 MB of JSON.
MAX_ROWS = 10_000
MAX_MONTHS = 240
COLUMNS = {
    "model": events.c.model,
    "key": events.c.key_id,
    "project": events.c.project_id,
    "endpoint": events.c.endpoint,
    "version": events.c.version,
    "backend": events.c.backend,
    "mode": events.c.mode,
    "status": events.c.status,
}
_FETCH_ROWS = 2_000
_SHARES = (0.5, 0.95, 0.99)
_SUCCESS_BELOW = 400


@dataclass(frozen=True, slots=True)
class UsageQuery:
    """Calls that began in `start_us` ≤ t < `end_us`. `group_by`: names of COLUMNS, or else of metadata tags."""

    start_us: int
    end_us: int
    bucket: Bucket | None = None
    group_by: tuple[str, ...] = ()
    filters: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Durations:
    """Microseconds; None where there was nothing to measure."""

    mean_us: int | None = None
    p50_us: int | None = None
    p95_us: int | None = None
    p99_us: int | None = None


@dataclass(slots=True)
class UsageRow:
    """The calls of one group in one period. `latency` is of those that succeeded."""

    start_us: int
    end_us: int
    group: dict[str, str | None]
    succeeded: int = 0
    failed: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    cached_tokens: int = 0
    cost_nanos: int = 0
    latency: Durations = Durations()
    first_token: Durations = Durations()


@dataclass(frozen=True, slots=True)
class UsageReport:
    """Rows that have calls, by period and group; `totals` is over all of them."""

    rows: list[UsageRow]
    totals: UsageRow


class _Tally:
    """Durations of one group while they are counted: ascending values and how often each."""

    __slots__ = ("counts", "number", "sum_us")

    def __init__(self) -> None:
        self.counts: dict[int, int] = {}
        self.number = 0
        self.sum_us = 0

    def add(self, value_us: int, number: int, sum_us: int) -> None:
        self.counts[value_us] = self.counts.get(value_us, 0) + number
        self.number += number
        self.sum_us += sum_us

    def durations(self) -> Durations:
        if not self.number:
            return Durations()
        p50, p95, p99 = quantiles(sorted(self.counts.items()), self.number, _SHARES)
        return Durations(self.sum_us // self.number, p50, p95, p99)


async def usage_report(conn: AsyncConnection, *, organization_id: str, query: UsageQuery) -> UsageReport:
    """This organization's usage. Raises: BadRequest when it has more than MAX_ROWS rows."""
    rows: dict[tuple[Any, ...], UsageRow] = {}
    totals = UsageRow(query.start_us, query.end_us, {})
    base = _base(organization_id, query)
    tally, overall, current = _Tally(), _Tally(), None
    async for key, row in _rows(conn, _counted(base), rows, query):
        if key is not current and current is not None:
            rows[current].latency, tally = tally.durations(), _Tally()
        current = key
        _count(rows[key], row)
        _count(totals, row)
        if row.ok:
            tally.add(row.duration, row.number, int(row.latency))
            overall.add(row.duration, row.number, int(row.latency))
    if current is not None:
        rows[current].latency = tally.durations()
    totals.latency = overall.durations()
    await _first_tokens(conn, base, rows, query=query, totals=totals)
    return UsageReport(sorted(rows.values(), key=_order), totals)


async def _first_tokens(
    conn: AsyncConnection,
    base: sa.Subquery,
    rows: dict[tuple[Any, ...], UsageRow],
    *,
    query: UsageQuery,
    totals: UsageRow,
) -> None:
    """The same walk for the time to the first token, of calls that succeeded and streamed tokens."""
    tally, overall, current = _Tally(), _Tally(), None
    async for key, row in _rows(conn, _first_counted(base), rows, query):
        if key is not current and current is not None:
            rows[current].first_token, tally = tally.durations(), _Tally()
        current = key
        tally.add(row.duration, row.number, int(row.first_token))
        overall.add(row.duration, row.number, int(row.first_token))
    if current is not None:
        rows[current].first_token = tally.durations()
    totals.first_token = overall.durations()


async def _rows(
    conn: AsyncConnection, statement: sa.Select[Any], rows: dict[tuple[Any, ...], UsageRow], query: UsageQuery
) -> AsyncIterator[tuple[tuple[Any, ...], sa.Row[Any]]]:
    """The statement's rows, each with the key of its usage row, which is made when it is met for the first time.

    Rows of one key follow each other and get the same key object.
    """
    width = len(query.group_by) + (query.bucket is not None)
    key: tuple[Any, ...] | None = None
    result = await conn.stream(statement)
    async for rows_at_once in result.partitions(_FETCH_ROWS):
        for row in rows_at_once:
            if key is None or row[:width] != key:
                key = row[:width]
                if key not in rows:
                    _check_size(rows, query)
                    rows[key] = _new_row(key, query)
            yield key, row


def _check_size(rows: Mapping[Any, UsageRow], query: UsageQuery) -> None:
    if len(rows) >= MAX_ROWS:
        raise BadRequest(
            f"The answer has more than {MAX_ROWS:,} rows: ask for a shorter period, a longer bucket or fewer groups.",
            param="bucket" if query.bucket else "group_by",
        )


def _new_row(key: tuple[Any, ...], query: UsageQuery) -> UsageRow:
    start_us, end_us = query.start_us, query.end_us
    if query.bucket is not None:
        begin = int(key[-1])
        start_us, end_us = max(begin, start_us), min(bucket_end(begin, query.bucket), end_us)
    values = [None if value is None else str(value) for value in key]
    return UsageRow(start_us, end_us, dict(zip(query.group_by, values, strict=False)))


def _count(into: UsageRow, row: sa.Row[Any]) -> None:
    if row.ok:
        into.succeeded += row.number
    else:
        into.failed += row.number
    into.input_tokens += int(row.input_tokens)
    into.output_tokens += int(row.output_tokens)
    into.cached_tokens += int(row.cached_tokens)
    into.cost_nanos += int(row.cost_nanos)


def _order(row: UsageRow) -> tuple[Any, ...]:
    return (row.start_us, *((value is not None, value or "") for value in row.group.values()))


def _base(organization_id: str, query: UsageQuery) -> sa.Subquery:
    """The events in question, with the columns to group by named `g0`, `g1`, … and, last, the bucket."""
    keys = [_group(name).label(f"g{index}") for index, name in enumerate(query.group_by)]
    if query.bucket is not None:
        keys.append(_bucket(query.bucket, query.start_us, query.end_us).label(f"g{len(keys)}"))
    conditions = [
        events.c.organization_id == organization_id,
        events.c.started_us >= query.start_us,
        events.c.started_us < query.end_us,
        *(COLUMNS[name] == value for name, value in query.filters.items()),
    ]
    return (
        sa.select(
            *keys,
            sa.case((events.c.status < _SUCCESS_BELOW, 1), else_=0).label("ok"),
            _resolved(events.c.latency_us).label("latency_count_us"),
            _resolved(events.c.first_token_us).label("first_count_us"),
            events.c.latency_us,
            events.c.first_token_us,
            events.c.input_tokens,
            events.c.output_tokens,
            events.c.cached_tokens,
            events.c.cost_nanos,
        )
        .where(*conditions)
        .subquery()
    )


def _counted(base: sa.Subquery) -> sa.Select[Any]:
    columns = base.c
    keys = [*_keys(base), columns.ok, columns.latency_count_us.label("duration")]
    sums = [
        sa.func.sum(columns[name]).label(name)
        for name in ("input_tokens", "output_tokens", "cached_tokens", "cost_nanos")
    ]
    count, latency = sa.func.count().label("number"), sa.func.sum(columns.latency_us).label("latency")
    return _grouped(sa.select(*keys, count, latency, *sums), keys)


def _first_counted(base: sa.Subquery) -> sa.Select[Any]:
    columns = base.c
    keys = [*_keys(base), columns.first_count_us.label("duration")]
    count, first = sa.func.count().label("number"), sa.func.sum(columns.first_token_us).label("first_token")
    statement = sa.select(*keys, count, first).where(columns.ok == 1, columns.first_token_us.is_not(None))
    return _grouped(statement, keys)


def _keys(base: sa.Subquery) -> list[sa.ColumnElement[Any]]:
    return [column for column in base.c if column.name[0] == "g" and column.name[1:].isdigit()]


def _grouped(statement: sa.Select[Any], keys: Iterable[sa.ColumnElement[Any]]) -> sa.Select[Any]:
    bare = [key.element if isinstance(key, sa.Label) else key for key in keys]
    return statement.group_by(*bare).order_by(*bare)


def _group(name: str) -> sa.ColumnElement[Any]:
    column = COLUMNS.get(name)
    return events.c.metadata[name].as_string() if column is None else column


def _resolved(column: sa.ColumnElement[int]) -> sa.ColumnElement[int]:
    """`rules.resolution` in SQL."""
    pairs = [(column < below, column // step * step + step // 2) for below, step in RESOLUTION_STEPS]
    return sa.case(*pairs, else_=pairs[-1][1])


def _bucket(bucket: Bucket, start_us: int, end_us: int) -> sa.ColumnElement[int]:
    """The beginning of the bucket that an event lies in."""
    started = events.c.started_us
    length_us = fixed_bucket_us(bucket)
    if length_us is not None:
        return started - started % length_us
    # Months have no one length, and the two databases no one function: their beginnings are spelled out.
    begins = _months(start_us, end_us)
    pairs = [(started < after, begin) for begin, after in itertools.pairwise(begins)]
    return sa.case(*pairs, else_=begins[-1]) if pairs else sa.literal(begins[0], sa.BigInteger)


def _months(start_us: int, end_us: int) -> Sequence[int]:
    begins = [bucket_start(start_us, "month")]
    while (after := bucket_end(begins[-1], "month")) < end_us:
        if len(begins) >= MAX_MONTHS:
            raise BadRequest(f"The period has more than {MAX_MONTHS} months.", param="start")
        begins.append(after)
    return begins
