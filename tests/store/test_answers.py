"""What every store of answers promises, asked of both: memory and Redis."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator
from dataclasses import dataclass

import pytest

from modelport.errors import StateUnavailable
from modelport.kit.clock import ManualClock
from modelport.replay.cache.answers import ENTRY_BYTES, AnswerStore, MemoryAnswers, SharedAnswers
from modelport.state.memory import MemoryState
from modelport.state.redis import RedisState
from tests.waiting import wait_until

_namespaces = (f"answers{number}" for number in itertools.count())


@dataclass
class Place:
    store: AnswerStore
    clock: ManualClock


@pytest.fixture(params=["memory", "redis"])
async def place(request: pytest.FixtureRequest) -> AsyncIterator[Place]:
    clock = ManualClock()
    if request.param == "memory":
        yield Place(MemoryAnswers(clock, max_bytes=1_000_000), clock)
        return
    state = RedisState(request.getfixturevalue("redis_url"), namespace=next(_namespaces), clock=clock)
    await state.start()
    yield Place(SharedAnswers(state), clock)
    await state.close()


async def test_what_was_put_is_found_and_the_later_wins(place: Place) -> None:
    assert await place.store.get("k") is None
    await place.store.put("k", b"\x00\xffold", ttl_s=60)
    await place.store.put("k", b"\x00\xffnew", ttl_s=60)
    assert await place.store.get("k") == b"\x00\xffnew"
    assert await place.store.get("other") is None


async def test_it_is_gone_after_its_time(place: Place) -> None:
    await place.store.put("k", b"x", ttl_s=0.2)
    place.clock.advance(0.2)

    async def gone() -> bool:
        return await place.store.get("k") is None

    await wait_until(gone, "what has expired is gone")


async def test_a_large_answer_comes_back_whole(place: Place) -> None:
    await place.store.put("k", b"x" * 900_000, ttl_s=60)
    assert await place.store.get("k") == b"x" * 900_000


async def test_a_store_that_is_away_has_nothing_and_breaks_nothing() -> None:
    state = MemoryState(ManualClock())
    await state.close()
    with pytest.raises(StateUnavailable):
        await state.get("k")
    store = SharedAnswers(state)
    await store.put("k", b"x", ttl_s=60)
    assert await store.get("k") is None


class TestMemory:
    async def test_the_least_recently_used_give_way(self) -> None:
        store = MemoryAnswers(ManualClock(), max_bytes=3 * (100 + ENTRY_BYTES))
        for key in "abc":
            await store.put(key, b"x" * 100, ttl_s=60)
        assert await store.get("a") is not None
        await store.put("d", b"x" * 100, ttl_s=60)
        found = {key: await store.get(key) is not None for key in "abcd"}
        assert found == {"a": True, "b": False, "c": True, "d": True}

    async def test_it_never_holds_more_than_it_may(self) -> None:
        clock = ManualClock()
        store = MemoryAnswers(clock, max_bytes=10_000)
        for number in range(200):
            await store.put(f"k{number % 17}", b"x" * (number * 37 % 3_000), ttl_s=60)
            assert 0 <= store.held_bytes <= 10_000
        await store.put("whale", b"x" * 10_001, ttl_s=60)
        assert await store.get("whale") is None
        clock.advance(60)
        for number in range(17):
            assert await store.get(f"k{number}") is None
        assert store.held_bytes == 0
