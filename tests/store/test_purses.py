"""What every state promises about purses: no budget is overshot, nothing spent is forgotten while the state lives."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import cast

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from modelport.kit.clock import ManualClock
from modelport.state.memory import MemoryState
from modelport.state.protocol import HOLD_RETRY_S, MAX_AMOUNT, MAX_SPENT, PURSE, Bucket, PurseLevel, State, Taken
from modelport.state.redis import RedisState
from modelport.state.sqlite import SqliteState

_namespaces = (f"purses{number}" for number in itertools.count())
_keys = (f"purse{number}" for number in itertools.count())


@pytest.fixture(params=["memory", "sqlite", "redis"])
async def states(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[tuple[State, State]]:
    """Two openings of one state (in memory there is none but the first)."""
    clock, kind = ManualClock(), str(request.param)
    if kind == "memory":
        opened: list[State] = [MemoryState(clock)] * 2
    elif kind == "sqlite":
        opened = [SqliteState(tmp_path / "state.db", clock) for _ in range(2)]
    else:
        url, namespace = request.getfixturevalue("redis_url"), next(_namespaces)
        opened = [RedisState(url, namespace=namespace, clock=clock) for _ in range(2)]
    async with AsyncExitStack() as stack:
        for state in opened:
            await state.start()
            stack.push_async_callback(state.close)
        yield opened[0], opened[1]


def _purse(limit: int, amount: int = 0, key: str = "bud:2026") -> Bucket:
    return Bucket(key, "budget", limit, PURSE, amount)


async def _look(state: State, limit: int = 100, key: str = "bud:2026") -> tuple[int | None, int, int]:
    """What was spent, what is held, what is left."""
    level = cast(PurseLevel, (await state.peek([_purse(limit, key=key)]))[0])
    return level.spent, level.held, level.remaining


async def test_a_purse_that_nobody_seeded_lets_nothing_through_and_says_so(states: tuple[State, State]) -> None:
    state, other = states
    rate = Bucket("org:rpm", "rpm", 10, 60, 1)
    taken = await state.take("c", [rate, _purse(100, 1), _purse(100, 0, "second")])
    assert (taken.allowed, taken.refused, taken.retry_after_s) == (False, 1, 0.0)
    assert [cast(PurseLevel, level).spent for level in taken.levels[1:]] == [None, None]
    assert await _look(state) == (None, 0, 0)
    await other.raise_spent({"bud:2026": 40, "second": 0})
    taken = await state.take("c", [rate, _purse(100, 1), _purse(100, 0, "second")])
    assert taken.allowed
    assert taken.levels[0].remaining == 9, "the refusal took nothing"
    assert await _look(other) == (40, 1, 59)


async def test_what_a_call_costs_stays_spent_and_the_rest_comes_back(states: tuple[State, State]) -> None:
    state, other = states
    await state.raise_spent({"bud:2026": 10})
    taken = await state.take("c", [_purse(100, 60)])
    level = cast(PurseLevel, taken.levels[0])
    assert (level.spent, level.held, level.remaining, level.reset_s) == (10, 60, 30, HOLD_RETRY_S)
    await state.settle(taken, [25])
    assert await _look(other) == (35, 0, 65)
    await state.settle(taken, [25])
    assert await _look(other) == (35, 0, 65), "settled twice, counted once"


async def test_a_refusal_tells_money_that_runs_from_money_that_is_gone(states: tuple[State, State]) -> None:
    state, other = states
    await state.raise_spent({"bud:2026": 30})
    running = await state.take("c", [_purse(100, 60)])
    waits = await other.take("d", [_purse(100, 20)])
    assert (waits.allowed, waits.retry_after_s) == (False, HOLD_RETRY_S)
    gone = await other.take("d", [_purse(100, 71)])
    assert (gone.allowed, gone.retry_after_s) == (False, None)
    await state.settle(running, [0])
    assert (await other.take("d", [_purse(100, 70)])).allowed


async def test_what_was_spent_is_only_ever_raised(states: tuple[State, State]) -> None:
    state, other = states
    for value, spent in ((7, 7), (5, 7), (9, 9)):
        await state.raise_spent({"bud:2026": value})
        assert (await _look(other))[0] == spent
    taken = await state.take("c", [_purse(100, 50)])
    await state.raise_spent({"bud:2026": 20})
    await state.settle(taken, [50])
    assert await _look(other) == (70, 0, 30)


async def test_a_charge_without_a_hold_counts_whatever_is_left(states: tuple[State, State]) -> None:
    state, other = states
    await state.raise_spent({"bud:2026": 99})
    taken = await state.take("c", [_purse(2**62, 0)])
    await state.settle(taken, [500])
    assert (await _look(other, 2**62))[0] == 599
    assert not (await state.take("c", [_purse(100, 0)])).allowed


async def test_large_amounts_are_exact_to_the_nano_dollar(states: tuple[State, State]) -> None:
    state, other = states
    await state.raise_spent({"bud:2026": MAX_SPENT - MAX_AMOUNT - 1})
    taken = await state.take("c", [_purse(MAX_SPENT, MAX_AMOUNT)])
    assert (taken.allowed, taken.levels[0].remaining) == (True, 1)
    assert not (await other.take("d", [_purse(MAX_SPENT, 2)])).allowed
    assert (await other.take("d", [_purse(MAX_SPENT, 1)])).allowed
    await state.settle(taken, [MAX_AMOUNT - 7])
    assert (await _look(other, MAX_SPENT)) == (MAX_SPENT - 8, 1, 7)


async def test_many_at_once_never_get_more_than_there_is(states: tuple[State, State]) -> None:
    state, other = states
    await state.raise_spent({"bud:2026": 0})
    takes = (one.take(str(number), [_purse(1_000, 7)]) for number in range(120) for one in (state, other))
    answers = await asyncio.gather(*takes)
    passed = [taken for taken in answers if taken.allowed]
    assert len(passed) == 1_000 // 7
    await asyncio.gather(*((state if index % 2 == 0 else other).settle(t, [7]) for index, t in enumerate(answers)))
    assert await _look(state, 1_000) == (994, 0, 6)


async def test_a_take_that_was_cancelled_holds_no_money(states: tuple[State, State]) -> None:
    state, other = states
    await state.raise_spent({"bud:2026": 0})
    takes = [asyncio.create_task(state.take(str(number), [_purse(1_000, 3)])) for number in range(20)]
    for turn in range(6):
        await asyncio.sleep(0)
        for take in takes[turn::6]:
            take.cancel()
    results = await asyncio.gather(*takes, return_exceptions=True)
    kept = [taken for taken in results if isinstance(taken, Taken)]
    await state.ping()
    await state.ping()
    assert await _look(other, 1_000) == (0, 3 * len(kept), 1_000 - 3 * len(kept))


_steps = st.lists(
    st.one_of(
        st.tuples(st.just("take"), st.integers(0, 40), st.booleans()),
        st.tuples(st.just("settle"), st.integers(0, 100), st.integers(0, 50)),
        st.tuples(st.just("raise"), st.integers(0, 120)),
        st.tuples(st.just("recorded")),
    ),
    max_size=40,
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=_steps, limit=st.integers(0, 100))
async def test_every_state_keeps_the_same_books(
    states: tuple[State, State], steps: list[tuple[object, ...]], limit: int
) -> None:
    """Random takes, settlements and raises against two integers: what was spent, what is held."""
    key = next(_keys)
    spent: int | None = None
    held = 0
    open_takes: list[tuple[State, Taken]] = []
    for step in steps:
        if step[0] == "raise":
            value = cast(int, step[1])
            await states[0].raise_spent({key: value})
            spent = max(spent or 0, value)
        elif step[0] == "recorded":
            await states[0].recorded()
        elif step[0] == "take":
            amount, state = cast(int, step[1]), states[bool(step[2])]
            taken = await state.take("c", [_purse(limit, amount, key)])
            assert taken.allowed == (spent is not None and spent + held + amount <= limit)
            if taken.allowed:
                held += amount
                open_takes.append((state, taken))
        elif open_takes:
            state, taken = open_takes.pop(cast(int, step[1]) % len(open_takes))
            amount, cost = taken.levels[0].bucket.amount, cast(int, step[2])
            await state.settle(taken, [cost])
            held -= amount
            spent = (spent or 0) + cost
        assert await _look(states[1], limit, key) == (
            spent,
            held,
            0 if spent is None else max(limit - spent - held, 0),
        )
