"""More calls than a model can answer, on a clock that is turned by hand: admission against an unbounded queue."""

from __future__ import annotations

import asyncio
import heapq
import random
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, Future
from typing import Any

import pytest

from modelport.backends.batching.batcher import Batcher, Terms
from modelport.backends.batching.work import Packing, Prepared
from modelport.calls import Usage
from modelport.errors import Overloaded

BASE_S, ROW_S, MAX_ROWS = 0.004, 0.001, 16
# Full batches: 16 rows in 20 ms.
CAPACITY = MAX_ROWS / (BASE_S + MAX_ROWS * ROW_S)
SLO_S = 0.2


class Machine(Executor):
    """One core on a clock of its own: a batch is done when its time has come."""

    def __init__(self, rng: random.Random) -> None:
        self.now_s = 0.0
        self._rng = rng
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._numbers = iter(range(1 << 40))

    def monotonic_s(self) -> float:
        return self.now_s

    def now_us(self) -> int:
        return round(self.now_s * 1_000_000)

    def at(self, moment_s: float, do: Callable[[], None]) -> None:
        heapq.heappush(self._events, (moment_s, next(self._numbers), do))

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()
        begun_s = self.now_s
        rows = sum(len(block) for block in args[0])
        took_s = (BASE_S + ROW_S * rows) * self._rng.uniform(0.9, 1.15)

        def done() -> None:
            self.now_s = begun_s
            self._took_s = took_s
            future.set_result(fn(*args))

        self.at(begun_s + took_s, done)
        return future

    def compute(self, blocks: Sequence[Any]) -> Sequence[Any]:
        self.now_s += self._took_s
        return blocks

    async def run(self, until_s: float) -> None:
        while self._events and self._events[0][0] < until_s:
            self.now_s, _, do = heapq.heappop(self._events)
            do()
            # Answers reach their callers and the next batch is formed before the clock goes on.
            for _ in range(8):
                await asyncio.sleep(0)


class Load:
    """Calls that arrive whatever happens to those before, and when each was answered."""

    def __init__(self, *, slo_s: float, seed: int) -> None:
        self.rng = random.Random(seed)
        self.machine = Machine(self.rng)
        terms = Terms(Packing(MAX_ROWS), 1, slo_s)
        self.batcher = Batcher(self.machine.compute, self.machine, self.machine, terms=terms)
        self.tasks: list[asyncio.Task[None]] = []
        self.answered: dict[str, list[float]] = {}
        self.refused: dict[str, int] = {}
        self.retries_s: list[float] = []

    def arrive(self, tenant: str, *, per_s: float, seconds: float) -> None:
        moment_s = 0.0
        while (moment_s := moment_s + self.rng.expovariate(per_s)) < seconds:
            self.machine.at(moment_s, lambda: self.tasks.append(asyncio.create_task(self._call(tenant))))

    async def _call(self, tenant: str) -> None:
        arrived_s = self.machine.now_s
        deadline_s = arrived_s + 60.0
        try:
            turn = self.batcher.admit(tenant, 1, deadline_s=deadline_s)
            await self.batcher.submit(turn, Prepared([0], Usage()))
        except Overloaded as error:
            self.retries_s.append(error.retry_after_s or 0.0)
            self.refused[tenant] = self.refused.get(tenant, 0) + 1
        else:
            self.answered.setdefault(tenant, []).append(self.machine.now_s - arrived_s)

    async def run(self, seconds: float) -> None:
        await self.machine.run(seconds)
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)

    def in_time(self, tenant: str | None = None) -> int:
        found = [self.answered.get(tenant, [])] if tenant else self.answered.values()
        return sum(latency_s <= SLO_S for latencies in found for latency_s in latencies)


@pytest.mark.parametrize("seed", [1, 2, 3])
async def test_under_overload_the_capacity_is_answered_in_time(seed: int) -> None:
    """At 1.5 times what it can take, 95 % of the capacity is still answered within the objective; a queue without
    admission answers almost nothing in time."""
    seconds = 6.0
    load = Load(slo_s=SLO_S, seed=seed)
    load.arrive("org_1", per_s=1.5 * CAPACITY, seconds=seconds)
    await load.run(seconds)
    unbounded = Load(slo_s=1e9, seed=seed)
    unbounded.arrive("org_1", per_s=1.5 * CAPACITY, seconds=seconds)
    await unbounded.run(seconds)
    # The simulated machine is 2.5 % slower on average than its figures say.
    capacity = CAPACITY / 1.025 * seconds
    assert load.in_time() >= 0.95 * capacity
    assert all(0 < retry_s <= 30 for retry_s in load.retries_s)
    late = sum(map(len, load.answered.values())) - load.in_time()
    assert late <= 0.01 * capacity
    assert unbounded.in_time() <= 0.2 * capacity


async def test_a_flood_of_one_organization_leaves_another_its_answers() -> None:
    seconds = 4.0
    load = Load(slo_s=SLO_S, seed=4)
    load.arrive("flood", per_s=5 * CAPACITY, seconds=seconds)
    load.arrive("small", per_s=0.2 * CAPACITY, seconds=seconds)
    await load.run(seconds)
    assert load.refused.get("small", 0) == 0
    assert load.in_time("small") >= 0.9 * 0.2 * CAPACITY * seconds
    assert max(load.answered["small"]) < 0.1
    assert load.in_time("flood") >= 0.9 * (0.8 * CAPACITY / 1.025 * seconds)


async def test_half_the_capacity_is_answered_without_a_refusal() -> None:
    load = Load(slo_s=SLO_S, seed=5)
    load.arrive("org_1", per_s=0.5 * CAPACITY, seconds=4.0)
    await load.run(4.0)
    assert not load.refused
    latencies = sorted(load.answered["org_1"])
    # A lone call takes 5 ms; no window is waited for.
    assert latencies[len(latencies) // 2] < 0.025
    assert latencies[int(len(latencies) * 0.99)] < 0.06
