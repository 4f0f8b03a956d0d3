"""Several real processes on one state: nothing is let through twice, and the dead hold nothing."""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
import subprocess
from pathlib import Path

import pytest

from modelport.kit.clock import ManualClock, SystemClock
from modelport.state.protocol import HOLD_TTL_S, State
from modelport.state.redis import RedisState
from modelport.state.sqlite import SqliteState
from tests.store.state_process import HELD, burst_buckets, open_shared, started
from tests.waiting import wait_until

_PROCESSES = 4
_RUNS = 10
_namespaces = (f"processes{number}" for number in itertools.count())


class Place:
    """Where processes meet: a folder or a Redis with a namespace of its own."""

    def __init__(self, url: str, folder: Path) -> None:
        self.url = url or str(folder)
        self.folder = folder
        self.namespace = next(_namespaces)

    def observer(self, ahead_s: float) -> State:
        """The same state, seen by somebody whose clock is ahead."""
        clock = ManualClock(start_us=SystemClock().now_us() + round(ahead_s * 1_000_000))
        if self.url.startswith("redis"):
            return RedisState(self.url, namespace=self.namespace, clock=clock)
        return SqliteState(self.folder / "state.db", clock)


@pytest.fixture(params=["sqlite", "redis"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    return Place(request.getfixturevalue("redis_url") if request.param == "redis" else "", tmp_path)


async def test_exactly_the_limit_passes_through_four_processes_in_ten_runs(place: Place) -> None:
    state = open_shared(place.url, place.namespace)
    await state.start()
    with contextlib.ExitStack() as stack:
        children = [stack.enter_context(started(place.url, place.namespace, "burst")) for _ in range(_PROCESSES)]
        for run in map(str, range(_RUNS)):
            for child in children:
                _say(child, run)
            assert sum([int(_line(child)) for child in children]) == 100
            levels = await state.peek(burst_buckets(run))
            # Settled to 500 tokens each, and nothing is held any more.
            assert [level.remaining for level in levels] == [1_000_000 - 100, 0, 1_000_000 - 100 * 500, 40]
    await state.close()


async def test_holds_of_a_killed_process_are_free_after_their_time_and_not_before(place: Place) -> None:
    with started(place.url, place.namespace, "hold", "10") as child:
        now, later = place.observer(0), place.observer(HOLD_TTL_S + 30)
        await now.start()
        assert not (await now.take("c", [HELD])).allowed
        os.kill(child.pid, signal.SIGKILL)
        child.wait(10)
        assert not (await now.take("c", [HELD])).allowed
        await later.start()
        assert (await later.take("c", [HELD])).levels[0].remaining == HELD.limit - 1
        await now.close()
        await later.close()


async def test_holds_of_a_living_process_are_renewed(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("modelport.state.sqlite.RENEW_INTERVAL_S", 0.05)
    monkeypatch.setattr("modelport.state.redis.RENEW_INTERVAL_S", 0.05)
    holder, observer = place.observer(0), place.observer(HOLD_TTL_S + 1)
    await holder.start()
    await observer.start()
    assert (await holder.take("c", [HELD])).allowed
    clock = holder._clock  # type: ignore[attr-defined]
    clock.advance(5)

    async def counts_for_the_observer() -> bool:
        return (await observer.peek([HELD]))[0].remaining == HELD.limit - 1

    await wait_until(counts_for_the_observer, "the hold was renewed by the holder's later clock")
    await holder.close()
    await observer.close()


async def test_a_process_that_was_stopped_for_long_counts_its_holds_again(place: Place) -> None:
    holder = place.observer(0)
    await holder.start()
    taken = [await holder.take(str(number), [HELD]) for number in range(8)]
    holder._clock.advance(HOLD_TTL_S + 60)  # type: ignore[attr-defined]
    assert (await holder.peek([HELD]))[0].remaining == HELD.limit
    assert (await holder.take("9", [HELD])).levels[0].remaining == HELD.limit - 9
    for one in taken:
        await holder.settle(one, [1])
    assert (await holder.peek([HELD]))[0].remaining == HELD.limit - 1
    await holder.close()


async def test_messages_reach_other_processes_in_order(place: Place) -> None:
    state = open_shared(place.url, place.namespace)
    await state.start()
    with contextlib.ExitStack() as stack:
        children = [stack.enter_context(started(place.url, place.namespace, "listen", "50")) for _ in range(2)]
        for number in range(50):
            await state.publish("news", str(number).encode())
        for child in children:
            assert [int(_line(child)) for _ in range(50)] == list(range(50))
    await state.close()


async def test_a_killed_listener_leaves_nothing_behind(tmp_path: Path) -> None:
    state = open_shared(str(tmp_path), "")
    await state.start()
    with started(str(tmp_path), "", "listen", "1") as child:
        sockets = tmp_path / "state.db.inboxes"
        assert len(list(sockets.iterdir())) == 1
        os.kill(child.pid, signal.SIGKILL)
        child.wait(10)
        await state.publish("news", b"x")
        assert not list(sockets.iterdir())
    await state.close()


def _say(child: subprocess.Popen[str], line: str) -> None:
    assert child.stdin is not None
    child.stdin.write(line + "\n")
    child.stdin.flush()


def _line(child: subprocess.Popen[str]) -> str:
    assert child.stdout is not None
    return child.stdout.readline()
