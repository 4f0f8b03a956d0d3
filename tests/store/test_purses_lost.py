"""Purses when a process dies or the state loses its memory: money is held too long then, never forgotten too soon."""

from __future__ import annotations

import os
import signal
import sqlite3
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, closing
from pathlib import Path
from typing import cast

import pytest

from modelport.errors import StateUnavailable
from modelport.kit.clock import ManualClock, SystemClock
from modelport.state.protocol import HOLD_TTL_S, PURSE, Bucket, PurseLevel, State
from modelport.state.redis import RedisState
from modelport.state.sqlite import SqliteState
from tests.services import Service, start_redis
from tests.store.redis_command import redis_command
from tests.store.state_process import MONEY, open_shared, started
from tests.waiting import wait_until

KEY = "bud:2026"


def _purse(amount: int = 0, limit: int = 1_000) -> Bucket:
    return Bucket(KEY, "budget", limit, PURSE, amount)


async def _books(state: State) -> tuple[int | None, int]:
    level = cast(PurseLevel, (await state.peek([_purse()]))[0])
    return level.spent, level.held


async def _pay(state: State, cost: int) -> None:
    await state.settle(await state.take("c", [_purse(cost)]), [cost])


async def _answers(state: State) -> bool:
    try:
        await state.ping()
    except StateUnavailable:
        return False
    return True


class TestRedis:
    @pytest.fixture
    async def states(
        self, redis_service: Service, monkeypatch: pytest.MonkeyPatch
    ) -> AsyncIterator[tuple[RedisState, RedisState]]:
        monkeypatch.setattr("modelport.state.redis.COMMAND_TIMEOUT_S", 0.3)
        monkeypatch.setattr("modelport.state.redis.RENEW_INTERVAL_S", 0.05)
        one, other = RedisState(redis_service.url), RedisState(redis_service.url)
        async with AsyncExitStack() as stack:
            for state in (one, other):
                await state.start()
                stack.push_async_callback(state.close)
            await one.raise_spent({KEY: 100})
            yield one, other

    async def test_a_redis_that_lost_its_memory_holds_what_was_spent_lately_until_the_record_has_it(
        self, states: tuple[RedisState, RedisState], redis_service: Service
    ) -> None:
        one, other = states
        running = await one.take("c", [_purse(7)])
        await _pay(one, 20)
        await _pay(other, 3)
        assert await _books(one) == (123, 7)
        redis_service.kill()
        redis_service.start()
        for state in states:
            await wait_until(lambda state=state: _answers(state), "the state is back")  # type: ignore[misc]
        assert not (await one.take("d", [_purse(1)])).allowed, "nobody has said yet what was spent"
        # The record lacks what the other process spent a moment ago, and has our own.
        await other.raise_spent({KEY: 120})
        assert await _books(one) == (120, 7 + 20 + 3)
        await one.settle(running, [6])
        assert await _books(one) == (126, 23)
        for _ in range(2):
            await one.raise_spent({KEY: 129})
            await one.recorded()
            await other.recorded()
        await wait_until(lambda: _are(one, (129, 0)), "what the record has is held no longer")

    async def test_an_older_copy_of_the_data_is_not_believed(self, monkeypatch: pytest.MonkeyPatch) -> None:
        service = start_redis("--save", "3600 1 1 1")
        try:
            state = RedisState(service.url)
            await state.start()
            await state.raise_spent({KEY: 100})
            await redis_command(service, "SAVE")
            await _pay(state, 50)
            service.kill()
            service.start()
            await wait_until(lambda: _answers(state), "the state is back")
            assert (await state.peek([_purse()]))[0].remaining == 0
            assert (await _books(state))[0] is None, "the copy says 100, and is no answer"
            await state.raise_spent({KEY: 100})
            assert await _books(state) == (100, 50)
            await state.close()
        finally:
            service.remove()

    async def test_flushed_data_is_a_loss_as_well(
        self, states: tuple[RedisState, RedisState], redis_service: Service
    ) -> None:
        one, other = states
        await _pay(one, 20)
        await redis_command(redis_service, "FLUSHALL")
        assert not (await one.take("d", [_purse(1)])).allowed
        await other.raise_spent({KEY: 100})
        assert await _books(other) == (100, 20)

    async def test_a_settlement_cut_off_in_flight_is_held_until_the_record_has_it(
        self, states: tuple[RedisState, RedisState], redis_service: Service
    ) -> None:
        one, _ = states
        taken = await one.take("c", [_purse(30)])
        redis_service.pause()
        with pytest.raises(StateUnavailable):
            await one.settle(taken, [20])
        redis_service.resume()
        await wait_until(lambda: _answers(one), "the state is back")
        spent, held = await _books(one)
        assert held == 20
        assert spent in (100, 120), "the frozen server may have run it after all"
        for _ in range(2):
            await one.raise_spent({KEY: 120})
            await one.recorded()
        await wait_until(lambda: _are(one, (120, 0)), "what the record has is held no longer")

    async def test_a_connection_that_broke_is_no_loss(self, states: tuple[RedisState, RedisState]) -> None:
        one, other = states
        await _pay(one, 20)
        running = await one.take("c", [_purse(5)])
        assert one._link is not None
        one._link.abort("cut by the test")
        await wait_until(lambda: _answers(one), "the state is back")
        assert await _books(other) == (120, 5)
        await one.settle(running, [4])
        assert await _books(other) == (124, 0)


async def test_a_file_that_could_not_be_written_holds_the_charge_until_the_record_has_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("modelport.state.sqlite.BUSY_LIMIT_S", 0.05)
    state = SqliteState(tmp_path / "state.db", ManualClock())
    await state.start()
    await state.raise_spent({KEY: 100})
    taken = await state.take("c", [_purse(30)])
    with closing(sqlite3.connect(tmp_path / "state.db", isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(StateUnavailable):
            await state.settle(taken, [20])
        other.execute("ROLLBACK")
    assert (await state.take("d", [_purse(0)])).levels[0].remaining == 1_000 - 100 - 20
    for _ in range(2):
        await state.raise_spent({KEY: 120})
        await state.recorded()
    assert (await state.take("d", [_purse(0)])).levels[0].remaining == 1_000 - 120
    await state.close()


@pytest.mark.parametrize("kind", ["sqlite", "redis"])
async def test_a_killed_process_spends_what_it_settled_and_holds_the_rest_for_a_while(
    kind: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    place = request.getfixturevalue("redis_url") if kind == "redis" else str(tmp_path)
    namespace = f"killed-{kind}"
    state = open_shared(place, namespace)
    await state.start()
    await state.raise_spent({MONEY.key: 0})
    ahead = ManualClock(start_us=SystemClock().now_us() + round((HOLD_TTL_S + 30) * 1_000_000))
    later: State = SqliteState(tmp_path / "state.db", ahead)
    if kind == "redis":
        later = RedisState(place, namespace=namespace, clock=ahead)
    await later.start()
    with started(place, namespace, "spend", "10") as child:
        os.kill(child.pid, signal.SIGKILL)
        child.wait(10)
        now = cast(PurseLevel, (await state.peek([MONEY]))[0])
        assert (now.spent, now.held) == (5 * MONEY.amount, 5 * MONEY.amount)
        then = cast(PurseLevel, (await later.peek([MONEY]))[0])
        assert (then.spent, then.held) == (5 * MONEY.amount, 0)
    await state.close()
    await later.close()


async def _are(state: State, books: tuple[int, int]) -> bool:
    return await _books(state) == books
