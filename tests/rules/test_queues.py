"""Calls that wait for something scarce: one asks at a time, in the order in which they came, and none for ever."""

from __future__ import annotations

import asyncio

from modelport.inference.queues import Queues
from modelport.kit.clock import ManualClock, SystemClock


async def test_who_came_first_asks_first_and_lets_the_next_one_ask() -> None:
    queues = Queues(asyncio.get_running_loop(), SystemClock())
    asked: list[int] = []

    async def call(number: int) -> None:
        place = queues.join("purse", wait_s=60)
        try:
            assert await place.turn()
            asked.append(number)
        finally:
            place.leave()

    await asyncio.gather(*(call(number) for number in range(20)))
    assert asked == list(range(20))
    assert len(queues) == 0


async def test_a_gift_that_comes_while_the_first_is_asking_is_not_missed() -> None:
    queues = Queues(asyncio.get_running_loop(), ManualClock())
    place = queues.join("purse", wait_s=60)
    queues.wake("purse")
    async with asyncio.timeout(30):
        assert await place.turn()
    place.leave()


async def test_queues_are_apart_and_whoever_gives_up_leaves_no_gap() -> None:
    queues = Queues(asyncio.get_running_loop(), SystemClock())
    first, gone, last = (queues.join("purse", wait_s=60) for _ in range(3))
    other = queues.join("another purse", wait_s=60)
    waiting = asyncio.create_task(last.turn())
    gone.leave()
    gone.leave()
    assert len(queues) == 3
    queues.wake("nobody's")
    await asyncio.sleep(0)
    assert not waiting.done()
    first.leave()
    assert await waiting
    last.leave()
    other.leave()
    assert len(queues) == 0


async def test_nobody_waits_longer_than_was_said() -> None:
    clock = ManualClock()
    queues = Queues(asyncio.get_running_loop(), clock)
    place = queues.join("purse", wait_s=5)
    place.wake()
    assert await place.turn()
    clock.advance(5)
    assert not await place.turn()
    place.leave()
