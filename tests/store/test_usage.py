"""Usage reports give the same answers on both databases, to the right organization."""

from __future__ import annotations

from pathlib import Path

import pytest

from modelport.db.engine import Database
from modelport.errors import BadRequest
from modelport.metering import queries, store
from modelport.metering.model import UsageEvent
from modelport.metering.queries import UsageQuery, UsageReport, usage_report
from modelport.metering.rules import resolution
from tests.store.metering import START_US, event

HOUR_US = 3_600_000_000
DAY_US = 24 * HOUR_US
ALL = (START_US - DAY_US, START_US + 400 * DAY_US)


async def report(db: Database, organization: str = "org_alice", **asked: object) -> UsageReport:
    start_us, end_us = asked.pop("period", ALL)  # type: ignore[misc]
    async with db.connect() as conn:
        query = UsageQuery(start_us, end_us, **asked)  # type: ignore[arg-type]
        return await usage_report(conn, organization_id=organization, query=query)


async def save(db: Database, *events: UsageEvent) -> None:
    async with db.begin() as conn:
        await store.insert_events(conn, events)


async def test_sums_every_column_and_counts_failures_apart(any_database: Database) -> None:
    await save(
        any_database,
        event("a", cost_nanos=3_000_000_000, input_tokens=5_000_000_000),
        event("b", status=499, error_code="call_cancelled", output_tokens=7, cost_nanos=11),
        event("c", status=502, error_code="upstream_failed", output_tokens=0, cost_nanos=0),
    )
    totals = (await report(any_database)).totals
    assert (totals.succeeded, totals.failed) == (1, 2)
    assert (totals.input_tokens, totals.output_tokens, totals.cached_tokens) == (5_000_000_200, 27, 30)
    assert totals.cost_nanos == 3_000_000_011


async def test_never_shows_another_organization_anything(any_database: Database) -> None:
    await save(any_database, event("a"), event("m", organization_id="org_mallory", cost_nanos=77))
    theirs = await report(any_database, "org_mallory", group_by=("model", "key"))
    assert [(row.succeeded, row.cost_nanos) for row in theirs.rows] == [(1, 77)]
    async with any_database.connect() as conn:
        assert await store.find_event(conn, organization_id="org_mallory", call_id="a") is None


async def test_groups_by_columns_and_by_metadata_tags_named_anything(any_database: Database) -> None:
    await save(
        any_database,
        event("a", metadata={"feature": "chat", "team.name": "x"}),
        event("b", metadata={"feature": "chat"}, status=400, error_code="invalid_request_error"),
        event("c", metadata={"feature": 'it\'s "quoted"'}, model="other"),
        event("d"),
    )
    by_feature = await report(any_database, group_by=("feature",))
    assert [(row.group["feature"], row.succeeded + row.failed) for row in by_feature.rows] == [
        (None, 1),
        ("chat", 2),
        ('it\'s "quoted"', 1),
    ]
    both = await report(any_database, group_by=("model", "team.name", "status"))
    assert [tuple(row.group.values()) for row in both.rows] == [
        ("other", None, "200"),
        ("sandbox", None, "200"),
        ("sandbox", None, "400"),
        ("sandbox", "x", "200"),
    ]


@pytest.mark.parametrize(
    ("bucket", "second_us", "starts"),
    [
        ("minute", START_US + 59_999_999, [START_US]),
        ("minute", START_US + 60_000_000, [START_US, START_US + 60_000_000]),
        ("hour", START_US + HOUR_US, [START_US, START_US + HOUR_US]),
        ("day", START_US + DAY_US - 1, [START_US]),
        ("month", START_US + 31 * DAY_US - 1, [START_US]),
        ("month", START_US + 31 * DAY_US, [START_US, START_US + 31 * DAY_US]),
        ("month", START_US + 365 * DAY_US, [START_US, START_US + 365 * DAY_US]),
    ],
)
async def test_buckets_begin_where_utc_says(
    any_database: Database, bucket: str, second_us: int, starts: list[int]
) -> None:
    await save(any_database, event("a"), event("b", started_us=second_us))
    found = await report(any_database, bucket=bucket)
    assert [row.start_us for row in found.rows] == starts


async def test_a_period_holds_its_start_and_not_its_end_and_cuts_buckets(any_database: Database) -> None:
    period = (START_US + 10, START_US + HOUR_US + 20)
    inside = (period[0], period[1] - 1)
    await save(any_database, *(event(str(at), started_us=at) for at in (*inside, period[0] - 1, period[1])))
    found = await report(any_database, period=period, bucket="hour")
    assert [(row.start_us, row.end_us, row.succeeded) for row in found.rows] == [
        (START_US + 10, START_US + HOUR_US, 1),
        (START_US + HOUR_US, START_US + HOUR_US + 20, 1),
    ]


async def test_percentiles_are_those_of_the_calls_that_succeeded(any_database: Database) -> None:
    latencies = [7, 999, 1_234, 56_789, 1_234_567, 987_654_321]
    await save(
        any_database,
        *(event(f"a{at}", latency_us=at, first_token_us=at // 2, model=f"m{at % 2}") for at in latencies),
        event("slow", latency_us=10**12, first_token_us=None, status=504, error_code="timeout"),
        event("no tokens", latency_us=50, first_token_us=None),
    )
    totals = (await report(any_database)).totals
    counted = sorted(resolution(at) for at in [*latencies, 50])
    assert totals.latency.p50_us == counted[3]
    assert totals.latency.p99_us == counted[-1] == 985_000_000
    assert totals.latency.mean_us == (sum(latencies) + 50) // 7
    assert totals.first_token.p50_us == resolution(1_234 // 2)
    grouped = await report(any_database, group_by=("model",))
    assert [(row.group["model"], row.latency.p50_us, row.first_token.p99_us) for row in grouped.rows] == [
        ("m0", resolution(1_234), resolution(617)),
        ("m1", resolution(56_789), resolution(493_827_160)),
        ("sandbox", 50, None),
    ]


async def test_an_organization_without_calls_has_no_rows_and_zero_totals(any_database: Database) -> None:
    found = await report(any_database, group_by=("model",), bucket="day")
    assert found.rows == []
    assert (found.totals.succeeded, found.totals.cost_nanos, found.totals.latency.p50_us) == (0, 0, None)


async def test_filters_hold_together(any_database: Database) -> None:
    await save(any_database, event("a"), event("b", model="other"), event("c", model="other", key_id="key_2"))
    found = await report(any_database, filters={"model": "other", "key": "key_2"})
    assert found.totals.succeeded == 1


async def test_an_answer_with_too_many_rows_is_refused_by_name(
    any_database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(queries, "MAX_ROWS", 3)
    await save(any_database, *(event(f"a{n}", started_us=START_US + n * 60_000_000) for n in range(4)))
    with pytest.raises(BadRequest) as refused:
        await report(any_database, bucket="minute")
    assert refused.value.param == "bucket"
    assert len((await report(any_database, bucket="hour")).rows) == 1


async def test_the_same_call_is_stored_once_whatever_it_says_the_second_time(any_database: Database) -> None:
    await save(any_database, event("a"), event("a", cost_nanos=99))
    await save(any_database, event("a", cost_nanos=98), event("b"))
    totals = (await report(any_database)).totals
    assert (totals.succeeded, totals.cost_nanos) == (2, 3_000)


async def test_an_event_comes_back_as_it_was_stored(any_database: Database) -> None:
    stored = event("a", metadata={"feature": 'ü"x'}, error_code=None, first_token_us=None, stream=True, exact=False)
    await save(any_database, stored)
    async with any_database.connect() as conn:
        assert await store.find_event(conn, organization_id="org_alice", call_id="a") == stored


async def test_text_that_postgresql_does_not_take_is_cleaned_before(any_database: Database, tmp_path: Path) -> None:
    await save(any_database, event("a", error_code="x\0" * 99, status=400, metadata={"feature": "a\0b"}))
    found = await report(any_database, group_by=("feature",))
    assert [row.group["feature"] for row in found.rows] == ["ab"]
