"""What a take and its settlement cost in each state: `python -m bench.state [COUNT]`.

A call takes three buckets (requests, tokens, calls at a time) with a fence, and settles the tokens. Microseconds of
this process's CPU, one after the other and 64 at a time, on 1,000 organizations; then several processes on one file.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import sys
import tempfile
import time
from pathlib import Path

import uvloop
from tests.services import start_redis

from modelport.kit.clock import SystemClock
from modelport.state.open import open_state
from modelport.state.protocol import Bucket, State

_ORGANIZATIONS = 1_000
_CLIENTS = 64
_HUGE = 1_000_000_000
_DEFAULT_COUNT = 20_000


def _buckets(number: int) -> list[Bucket]:
    organization = f"org_{number % _ORGANIZATIONS:032x}"
    return [
        Bucket(f"{organization}:rpm", "rpm", _HUGE, 60, 1),
        Bucket(f"{organization}:tpm", "tpm", _HUGE, 60, 500),
        Bucket(f"{organization}:calls", "calls", _HUGE, 0, 1),
    ]


async def _calls(state: State, numbers: range, *, settle: bool) -> None:
    for number in numbers:
        taken = await state.take(f"req_{number:032x}", _buckets(number), fence="keys")
        if settle:
            await state.settle(taken, [1, 123, 1])


async def _measure(name: str, state: State, count: int) -> None:
    await state.start()
    await _calls(state, range(1_000), settle=True)
    for clients, settle in ((1, False), (1, True), (_CLIENTS, False), (_CLIENTS, True)):
        share = count // clients
        shares = [range(share * client, share * (client + 1)) for client in range(clients)]
        cpu_s, wall_s = time.process_time(), time.perf_counter()
        await asyncio.gather(*(_calls(state, numbers, settle=settle) for numbers in shares))
        cpu_us, wall_us = ((now - then) / count * 1e6 for now, then in _since(cpu_s, wall_s))
        what = "take and settle" if settle else "take"
        print(f"{name:8} {clients:3} at a time  {what:16} {cpu_us:7.1f} µs CPU {wall_us:7.1f} µs wall", flush=True)
    await state.close()


def _since(cpu_s: float, wall_s: float) -> tuple[tuple[float, float], tuple[float, float]]:
    return (time.process_time(), cpu_s), (time.perf_counter(), wall_s)


def _worker(folder: str, count: int) -> None:
    async def run() -> None:
        state = open_state("sqlite", data_dir=Path(folder), workers=4, namespace="bench", clock=SystemClock())
        await state.start()
        await _calls(state, range(count), settle=True)
        await state.close()

    uvloop.run(run())


def _contended(folder: Path, processes: int, count: int) -> None:
    share = count // processes
    workers = [multiprocessing.Process(target=_worker, args=(str(folder), share)) for _ in range(processes)]
    began_s = time.perf_counter()
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    failed = sum(worker.exitcode != 0 for worker in workers)
    wall_us = (time.perf_counter() - began_s) / count * 1e6
    print(f"sqlite   {processes} processes take and settle {wall_us:7.1f} µs wall a call, {failed} processes failed")


def main() -> None:
    count = int(sys.argv[1]) if len(sys.argv) > 1 else _DEFAULT_COUNT
    redis = start_redis()
    try:
        with tempfile.TemporaryDirectory() as folder:
            for url in ("memory", "sqlite", redis.url):
                state = open_state(url, data_dir=Path(folder), workers=1, namespace="bench", clock=SystemClock())
                uvloop.run(_measure(url.partition(":")[0], state, count))
            for processes in (1, 2, 4):
                _contended(Path(folder), processes, count)
    finally:
        redis.remove()


if __name__ == "__main__":
    main()
