"""Service levels are counted once, over all workers and instances, and outlive each of them."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import sqlalchemy as sa
from structlog.testing import capture_logs

from modelport.calls import Served, Usage
from modelport.db.engine import Database
from modelport.db.schema import service_counts
from modelport.errors import Unavailable
from modelport.kit.clock import ManualClock
from modelport.observe.metrics import Metrics
from modelport.settings import SloSettings
from modelport.slo import service as slo_service
from modelport.slo.model import WINDOWS, Objective, Tally
from modelport.slo.service import ServiceLevels
from modelport.state.memory import MemoryState
from modelport.state.protocol import State
from tests.waiting import wait_until

FIVE, HOUR, MONTH = WINDOWS
SERVED = Served("iris", "2", "onnx", "iris")
# No worker adds anything by itself while a test looks.
SETTINGS = SloSettings(interval_s=3600)


class Worker:
    """One worker's metrics and its part in the levels."""

    def __init__(self, db: Database, clock: ManualClock, state: State) -> None:
        self.metrics = Metrics()
        self.levels = ServiceLevels(db, state, metrics=self.metrics, clock=clock, settings=SETTINGS, of_models={})

    def call(self, status: int = 200, *, ms: float = 3.0, served: Served = SERVED) -> None:
        latency_us = round(ms * 1000)
        self.metrics.call_ended(
            "/v1/predict", served, status, latency_us=latency_us, first_token_us=None, usage=Usage()
        )

    async def look(self) -> tuple[Tally, Tally, Tally]:
        found = await self.levels.windows()
        return found[FIVE], found[HOUR], found[MONTH]


@asynccontextmanager
async def working(db: Database, clock: ManualClock, state: State | None = None) -> AsyncIterator[Worker]:
    worker = Worker(db, clock, state or MemoryState(clock))
    await worker.levels.start()

    async def began() -> bool:
        async with db.connect() as conn:
            return bool(await conn.scalar(sa.select(sa.func.count()).select_from(service_counts)))

    await wait_until(began, "the worker has said that it is up")
    try:
        yield worker
    finally:
        await worker.levels.close()


async def test_the_calls_of_two_workers_add_up_and_either_can_tell(any_database: Database) -> None:
    clock = ManualClock()
    async with working(any_database, clock) as first, working(any_database, clock) as second:
        for _ in range(3):
            first.call(ms=3)
        second.call(ms=400)
        second.call(503)
        second.call(served=SERVED._replace(version="1"))
        second.metrics.cached("iris", "hit", held_bytes=1)
        for worker in (second, first):
            tallies = await worker.look()
        for tally in tallies:
            counts = tally.calls["iris", "/v1/predict"]
            assert counts.statuses == {200: 5, 503: 1}
            assert sum(counts.good.values()) == 5
            assert counts.versions == {"2": 5, "1": 1}
            assert tally.cache == {"iris": {"hit": 1}}
            assert (tally.minutes_up, tally.minutes) == (1, 1)


async def test_old_calls_leave_the_short_windows_and_stay_in_the_long_one(any_database: Database) -> None:
    clock = ManualClock()
    async with working(any_database, clock) as worker:
        worker.call()
        await worker.look()
        clock.advance(6 * 60)
        five, hour, month = await worker.look()
        assert [bool(tally.calls) for tally in (five, hour, month)] == [False, True, True]
        clock.advance(2 * 3600)
        five, hour, month = await worker.look()
        assert [bool(tally.calls) for tally in (five, hour, month)] == [False, False, True]
        clock.advance(31 * 86_400)
        assert not (await worker.look())[2].calls


async def test_minutes_in_which_nobody_was_up_are_missing_and_those_before_the_first_start_are_not(
    any_database: Database,
) -> None:
    clock = ManualClock()
    async with working(any_database, clock):
        pass
    clock.advance(4 * 60)
    async with working(any_database, clock) as worker:
        for tally in await worker.look():
            assert (tally.minutes_up, tally.minutes) == (2, 5)
        (uptime,) = [one for one in await worker.levels.report() if one.objective is Objective.UPTIME]
        assert {level.met for level in uptime.levels} == {False}


async def test_a_worker_that_stops_adds_what_it_counted_last(any_database: Database) -> None:
    clock = ManualClock()
    async with working(any_database, clock) as worker:
        worker.call()
    async with working(any_database, clock) as other:
        assert (await other.look())[0].calls["iris", "/v1/predict"].statuses == {200: 1}


async def test_slots_that_no_window_reaches_are_removed(any_database: Database) -> None:
    clock = ManualClock()
    async with working(any_database, clock) as worker:
        worker.call()
        await worker.look()
        clock.advance(32 * 86_400)
        await worker.levels._prune()
    async with any_database.connect() as conn:
        kinds = (await conn.execute(sa.select(service_counts.c.kind))).scalars().all()
    assert kinds == ["began"]


async def test_counts_wait_for_a_database_that_is_away_and_only_so_many(
    any_database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = ManualClock()
    async with working(any_database, clock) as worker:
        monkeypatch.setattr(slo_service, "MAX_WAITING", 2)
        begin = any_database.begin

        def away() -> None:
            raise Unavailable("The database can't be reached for a moment.")

        monkeypatch.setattr(any_database, "begin", away)
        for status in (200, 500, 502, 503):
            worker.call(status)
            with pytest.raises(Unavailable):
                await worker.look()
        monkeypatch.setattr(any_database, "begin", begin)
        assert (await worker.look())[0].calls["iris", "/v1/predict"].statuses == {200: 1, 500: 1}
        assert (await worker.look())[0].calls["iris", "/v1/predict"].statuses == {200: 1, 500: 1}


async def test_a_promise_that_begins_to_burn_and_one_that_recovers_are_a_line_each_of_all_workers(
    any_database: Database,
) -> None:
    clock = ManualClock()
    state = MemoryState(clock)
    async with working(any_database, clock, state) as worker, working(any_database, clock, state) as other:
        worker.call(500)
        with capture_logs() as lines:
            for pause_s in (slo_service.ALARM_INTERVAL_S, slo_service.ALARM_INTERVAL_S, 6 * 60):
                clock.advance(pause_s)
                await worker.levels._now_and_then()
                await other.levels._now_and_then()
    told = [(line["event"], line["model"], line["objective"]) for line in lines]
    assert told == [("slo_burning", "iris", "errors"), ("slo_recovered", "iris", "errors")]


async def test_counts_that_the_database_refuses_are_dropped_and_later_ones_counted(
    any_database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.modules[__name__], "SETTINGS", SloSettings(interval_s=0.01))
    clock = ManualClock()
    async with working(any_database, clock) as worker:
        with capture_logs() as lines:
            # No column takes it: a key without an endpoint.
            worker.metrics.call_ended(
                None,
                SERVED,
                200,
                latency_us=1,
                first_token_us=None,
                usage=Usage(),  # type: ignore[arg-type]
            )
            await wait_until(lambda: any(line["event"] == "slo_failed" for line in lines), "the refusal is told")
        worker.call()
        assert (await worker.look())[0].calls["iris", "/v1/predict"].statuses == {200: 1}
