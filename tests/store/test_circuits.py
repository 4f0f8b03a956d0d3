"""Circuits are shared: what one process saw counts in all, and one probes for all; without the state, each alone."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from modelport.backends.protocol import Target
from modelport.backends.sandbox import SandboxBackend
from modelport.errors import CircuitOpen
from modelport.kit.clock import ManualClock
from modelport.observe.metrics import process_metrics
from modelport.routing.breaker import Breaker, BreakerRules, BreakerState, Outcome
from modelport.routing.circuits import CircuitChange
from modelport.routing.model import Candidate, Route
from modelport.routing.service import Router
from modelport.routing.stats import Pulse
from modelport.settings import RoutingSettings
from modelport.state.protocol import State
from tests.store.states import KINDS, two_states
from tests.waiting import wait_until

# Redis goes by its own time, so a lease must not run out while a test is slow.
RULES = BreakerRules(min_calls=3, open_s=60.0, probes=1)


@dataclass
class Process:
    """One process's router over one target, and the changes that it decided."""

    router: Router
    pulse: Pulse
    clock: ManualClock
    changes: list[CircuitChange] = field(default_factory=list)

    @property
    def state(self) -> BreakerState:
        assert self.pulse.breaker is not None
        return self.pulse.breaker.state

    async def call(self, outcome: Outcome) -> None:
        number = self.router.enter(self.pulse)
        if number < 0:
            number = await self.router.enter_guarded(self.pulse)
        self.router.leave(self.pulse, outcome, number, 0.0, self.clock.monotonic_s())

    async def fail(self) -> None:
        """Enough to open the circuit."""
        for _ in range(RULES.min_calls):
            await self.call(Outcome.BAD)


@dataclass
class World:
    states: list[State]
    clock: ManualClock
    stack: AsyncExitStack

    async def process(self, number: int = 0) -> Process:
        """A process that starts now."""
        pulse = Pulse("primary", "gpt", Breaker(RULES))
        route = Route("m", "1", (Candidate(Target(SandboxBackend(), "gpt", "primary"), pulse),))
        changes: list[CircuitChange] = []
        router = Router(
            [route],
            self.states[number],
            clock=self.clock,
            metrics=process_metrics(),
            settings=RoutingSettings(),
            on_change=changes.append,
        )
        await router.start()
        self.stack.push_async_callback(router.close)
        return Process(router, pulse, self.clock, changes)


@pytest.fixture(params=KINDS)
async def world(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[World]:
    clock = ManualClock()
    states = two_states(str(request.param), clock, request, tmp_path)
    async with AsyncExitStack() as stack:
        for state in states:
            await state.start()
            stack.push_async_callback(state.close)
        yield World(states, clock, stack)


async def test_what_one_has_seen_counts_for_all_and_for_those_who_come_later(world: World) -> None:
    one, two = await world.process(0), await world.process(1)
    await one.fail()
    assert one.state is BreakerState.OPEN
    await wait_until(lambda: two.state is BreakerState.OPEN, "the other one has heard of it")
    with pytest.raises(CircuitOpen) as refused:
        await two.call(Outcome.GOOD)
    assert refused.value.retry_after_s == pytest.approx(RULES.open_s)
    late = await world.process(1)
    assert late.state is BreakerState.OPEN
    # An event is one in all processes together.
    assert [change.state for change in one.changes] == [BreakerState.OPEN]
    assert two.changes == late.changes == []


async def test_one_probes_for_all(world: World) -> None:
    one, two = await world.process(0), await world.process(1)
    await one.fail()
    await wait_until(lambda: two.state is BreakerState.OPEN, "the other one has heard of it")
    world.clock.advance(RULES.open_s)
    number = await two.router.enter_guarded(two.pulse)
    with pytest.raises(CircuitOpen):
        await one.router.enter_guarded(one.pulse)
    with pytest.raises(CircuitOpen):
        await two.router.enter_guarded(two.pulse)
    two.router.leave(two.pulse, Outcome.GOOD, number, 0.0, world.clock.monotonic_s())
    assert two.state is BreakerState.CLOSED
    await wait_until(lambda: one.state is BreakerState.CLOSED, "the other one has heard of it")
    await one.call(Outcome.GOOD)
    assert (await world.process(0)).state is BreakerState.CLOSED


async def test_a_probe_that_fails_leaves_it_alone_for_all(world: World) -> None:
    one, two = await world.process(0), await world.process(1)
    await one.fail()
    await wait_until(lambda: two.state is BreakerState.OPEN, "the other one has heard of it")
    world.clock.advance(RULES.open_s)
    await two.call(Outcome.BAD)
    with pytest.raises(CircuitOpen):
        await two.call(Outcome.GOOD)
    assert one.router.enter(one.pulse) < 0

    # And any process may be the next to try: the lease was given back.
    world.clock.advance(RULES.open_s)

    async def probed() -> bool:
        world.clock.advance(1.0)
        try:
            await one.call(Outcome.GOOD)
        except CircuitOpen:
            return False
        return True

    await wait_until(probed, "the other one was let through")
    assert one.state is BreakerState.CLOSED


async def test_without_the_state_each_goes_on_alone(world: World) -> None:
    one = await world.process(0)
    for state in world.states:
        await state.close()
    await one.fail()
    assert one.state is BreakerState.OPEN
    with pytest.raises(CircuitOpen):
        await one.call(Outcome.GOOD)
    world.clock.advance(RULES.open_s)
    await one.call(Outcome.GOOD)
    assert one.state is BreakerState.CLOSED


async def test_circuits_are_listed_as_they_are(world: World) -> None:
    one = await world.process()
    await one.call(Outcome.GOOD)
    await one.call(Outcome.BAD)
    (view,) = one.router.circuits()
    assert (view.upstream, view.model, view.state) == ("primary", "gpt", BreakerState.CLOSED)
    assert (view.calls, view.failed, view.outstanding, view.reopens_s) == (2, 1, 0, 0.0)
    await one.call(Outcome.BAD)
    (view,) = one.router.circuits()
    assert (view.state, view.reopens_s) == (BreakerState.OPEN, RULES.open_s)
