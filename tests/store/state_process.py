"""A process of its own for the tests of shared state: `python -m tests.store.state_process URL NAMESPACE ACTION [N]`.

It prints `ready`. A burst then begins with each line that it reads, on buckets of that line's own. URL is a Redis's
or a folder for SQLite.
"""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
import sys
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

from modelport.kit.clock import SystemClock
from modelport.state.open import open_state
from modelport.state.protocol import PURSE, Bucket, State, Taken

CLIENTS = 16
TRIES = 25
HELD = Bucket("org:held", "calls", 10, 0, 1)
MONEY = Bucket("bud:spent", "budget", 1_000, PURSE, 10)


def open_shared(place: str, namespace: str) -> State:
    """The state at `place`, on the machine's clock."""
    url = place if place.startswith("redis") else "sqlite"
    return open_state(url, data_dir=Path(place), workers=4, namespace=namespace, clock=SystemClock())


@contextlib.contextmanager
def started(place: str, namespace: str, *action: str) -> Iterator[subprocess.Popen[str]]:
    """A child that has said `ready`; killed afterwards."""
    command = [sys.executable, "-m", "tests.store.state_process", place, namespace, *action]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as child:
        try:
            assert child.stdout is not None
            assert child.stdout.readline() == "ready\n"
            yield child
        finally:
            child.kill()


def burst_buckets(run: str) -> list[Bucket]:
    """What each call of a burst takes: 100 may pass, of at most 40 at a time."""
    return [
        Bucket(f"{run}:all", "all", 1_000_000, 3_600, 1),
        Bucket(f"{run}:rpm", "rpm", 100, 3_600, 1),
        Bucket(f"{run}:tpm", "tpm", 1_000_000, 3_600, 1_000),
        Bucket(f"{run}:calls", "calls", 40, 0, 1),
    ]


async def _client(state: State, number: int, buckets: list[Bucket]) -> int:
    passed = 0
    for attempt in range(TRIES):
        taken = await state.take(f"{number}-{attempt}", buckets)
        if taken.allowed:
            passed += 1
            await asyncio.sleep(0)
            await state.settle(taken, [1, 1, 500, 1])
    return passed


async def _burst(state: State, _: int) -> None:
    _say("ready")
    while line := await asyncio.to_thread(sys.stdin.readline):
        buckets = burst_buckets(line.strip())
        _say(sum(await asyncio.gather(*(_client(state, number, buckets) for number in range(CLIENTS)))))


async def _hold(state: State, count: int) -> None:
    held: list[Taken] = [await state.take(str(number), [HELD]) for number in range(count)]
    assert all(taken.allowed for taken in held)
    _say("ready")
    await asyncio.Event().wait()


async def _spend(state: State, count: int) -> None:
    """Hold `count` times, and settle half of them at their full price."""
    held = [await state.take(str(number), [MONEY]) for number in range(count)]
    assert all(taken.allowed for taken in held)
    for taken in held[: count // 2]:
        await state.settle(taken, [MONEY.amount])
    _say("ready")
    await asyncio.Event().wait()


async def _listen(state: State, count: int) -> None:
    async with state.subscribe("news") as subscription:
        _say("ready")
        async for message in subscription:
            _say(message.decode())
            count -= 1
            if not count:
                break


def _say(what: object) -> None:
    print(what, flush=True)


_ACTIONS: dict[str, Callable[[State, int], Awaitable[None]]] = {
    "burst": _burst,
    "hold": _hold,
    "spend": _spend,
    "listen": _listen,
}


async def main(place: str, namespace: str, action: str, count: str = "0") -> None:
    state = open_shared(place, namespace)
    await state.start()
    await _ACTIONS[action](state, int(count))
    await state.close()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
