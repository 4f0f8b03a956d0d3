"""Pieces are gathered only while the processor is short, and for no longer than `most_s`."""

from __future__ import annotations

import asyncio
import time

from modelport.kit.gathering import MEASURE_S, Gathering, gathering_of
from tests.waiting import wait_until

MOST_S = 0.004


def busy(seconds: float) -> None:
    until_s = time.thread_time() + seconds
    while time.thread_time() < until_s:
        pass


async def pressed(gathering: Gathering) -> None:
    """Return when the loop has been short of time for long enough to be believed."""

    def work() -> bool:
        busy(2 * MEASURE_S)
        return gathering.window_s > MOST_S / 2

    await wait_until(work, "the loop is found busy")


async def test_an_idle_loop_waits_for_nothing() -> None:
    gathering = Gathering(asyncio.get_running_loop())
    gathering.most_s = MOST_S
    measured = asyncio.Event()
    gathering.join()
    asyncio.get_running_loop().call_later(3 * MEASURE_S, measured.set)
    await measured.wait()
    assert gathering.window_s < MOST_S / 4
    gathering.leave()


async def test_a_busy_loop_handles_together_what_comes_within_the_window_and_loses_nothing() -> None:
    gathering = Gathering(asyncio.get_running_loop())
    gathering.most_s = MOST_S
    gathering.join()
    await pressed(gathering)
    assert gathering.window_s <= MOST_S
    handled: list[int] = []
    for number in range(5):
        gathering.hold(lambda number=number: handled.append(number))  # type: ignore[misc]
    assert handled == []
    await wait_until(lambda: len(handled) == 5, "the window ends")
    assert handled == [0, 1, 2, 3, 4]
    gathering.leave()
    await wait_until(lambda: gathering.window_s == 0.0, "nobody has anything to gather")


async def test_what_is_switched_off_never_waits() -> None:
    gathering = gathering_of(asyncio.get_running_loop())
    assert gathering is gathering_of(asyncio.get_running_loop())
    gathering.join()
    busy(2 * MEASURE_S)
    await asyncio.sleep(0)
    assert gathering.window_s == 0.0
    gathering.leave()
