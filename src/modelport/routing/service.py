"""What the corridor asks of routing: the route of a model, the attempts of a call, and leave to make each of them."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from modelport.calls import Mode
from modelport.errors import CircuitOpen
from modelport.kit.clock import Clock
from modelport.observe.metrics import Metrics
from modelport.routing.breaker import CLOSED, GOOD, Breaker, BreakerState, Gate, Outcome
from modelport.routing.circuits import CircuitChange, Circuits
from modelport.routing.model import Policy, Route
from modelport.routing.plan import Itinerary
from modelport.routing.retry import RetryRatio
from modelport.routing.split import Draw
from modelport.routing.stats import Pulse
from modelport.settings import RoutingSettings
from modelport.state.protocol import State

# Routes of versions that were removed: more than are removed while one call runs.
_MOST_GONE = 1_000


@dataclass(frozen=True, slots=True)
class CircuitView:
    """A target's breaker as operators see it. `reopens_s`: in how many seconds a call is let through; 0 when it is
    closed."""

    upstream: str
    model: str
    state: BreakerState
    calls: int
    failed: int
    slow: int
    outstanding: int
    latency_s: float | None
    reopens_s: float


class Router:
    """One per process. In steady state nothing here waits, and nothing leaves the process."""

    def __init__(
        self,
        routes: Iterable[Route],
        state: State,
        *,
        played: Iterable[Route] = (),
        clock: Clock,
        metrics: Metrics,
        settings: RoutingSettings,
        draw: Draw = random.random,
        on_change: Callable[[CircuitChange], None] | None = None,
    ) -> None:
        """`played` are routes of the same models for test keys, where those differ."""
        self._routes: Mapping[tuple[str, str], Route] = {}
        self._played: Mapping[tuple[str, str], Route] = {}
        # Routes that are gone; calls that were planned for them may still ask.
        self._gone: dict[tuple[str, str], Route] = {}
        self.replace(routes, played=played)
        self._clock = clock
        self._metrics = metrics
        self._draw = draw
        self.ratio = RetryRatio(settings.retry_ratio, settings.retry_reserve)
        pulses = (candidate.pulse for route in self._routes.values() for candidate in route.candidates)
        self._circuits = Circuits(pulses, state, clock=clock, metrics=metrics, on_change=on_change)

    async def start(self) -> None:
        """Learn what other processes have seen; returns soon also when the state is away."""
        await self._circuits.start()

    async def close(self) -> None:
        await self._circuits.close()

    def replace(self, routes: Iterable[Route], *, played: Iterable[Route] = ()) -> None:
        """Have these routes from now on. Targets with a breaker are the same as before."""
        fresh = {(route.model, route.version): route for route in routes}
        self._gone |= {name: route for name, route in self._routes.items() if name not in fresh}
        while len(self._gone) > _MOST_GONE:
            del self._gone[next(iter(self._gone))]
        self._routes = fresh
        self._played = {(route.model, route.version): route for route in played}

    def route(self, model: str, version: str, *, mode: Mode) -> Route:
        """The route of a version that the catalogue has, or had, for calls with keys of that mode."""
        if mode == "test":
            played = self._played.get((model, version))
            if played is not None:
                return played
        return self._routes.get((model, version)) or self._gone[model, version]

    def itinerary(
        self, route: Route, policy: Policy, *, latest_s: float, find: Callable[[str], Route | None]
    ) -> Itinerary:
        """The attempts of one call. `find` gives the route of a fallback model, if the call may use it."""
        return Itinerary(route, policy, latest_s=latest_s, ratio=self.ratio, find=find, draw=self._draw)

    def enter(self, pulse: Pulse) -> int:
        """Begin an attempt at a target without asking anybody: the number to `leave` with, or -1.

        -1: its breaker is not closed, so `enter_guarded` is the way in.
        """
        breaker = pulse.breaker
        if breaker is None:
            pulse.outstanding += 1
            return 0
        if breaker.state is not CLOSED:
            return -1
        pulse.outstanding += 1
        return breaker.generation

    async def enter_guarded(self, pulse: Pulse) -> int:
        """The same at a target whose breaker is not closed: as its probe. Raises: CircuitOpen."""
        breaker = pulse.breaker
        assert breaker is not None
        gate = breaker.gate(self._clock.monotonic_s())
        if gate is Gate.SHUT or (gate is Gate.PROBE and not await self._circuits.take_probe(pulse, breaker)):
            raise self.refusal([pulse])
        pulse.outstanding += 1
        return breaker.generation

    def leave(self, pulse: Pulse, outcome: Outcome, number: int, latency_s: float, now_s: float) -> None:
        """End an attempt. `latency_s` is the time until its output began; without output, until it failed."""
        pulse.outstanding -= 1
        if outcome is GOOD:
            pulse.answered(latency_s, now_s)
        breaker = pulse.breaker
        if breaker is not None and breaker.record(outcome, now_s, generation=number, latency_s=latency_s):
            self._circuits.changed(pulse, breaker)

    def refusal(self, pulses: Iterable[Pulse]) -> CircuitOpen:
        """What a call is told when every one of these targets is left alone."""
        now_s = self._clock.monotonic_s()
        waits = [pulse.breaker.wait_s(now_s) for pulse in pulses if pulse.breaker is not None]
        return CircuitOpen(retry_after_s=min(waits, default=1.0))

    def circuits(self) -> list[CircuitView]:
        """Every target's breaker, as this process sees it."""
        now_s = self._clock.monotonic_s()
        return [_view(pulse, breaker, now_s) for pulse, breaker in self._circuits.all()]


def _view(pulse: Pulse, breaker: Breaker, now_s: float) -> CircuitView:
    return CircuitView(
        upstream=pulse.upstream,
        model=pulse.model,
        state=breaker.state,
        calls=breaker.calls,
        failed=breaker.bad,
        slow=breaker.slow,
        outstanding=pulse.outstanding,
        latency_s=pulse.latency_s(now_s),
        reopens_s=0.0 if breaker.state is BreakerState.CLOSED else max(breaker.reopens_s - now_s, 0.0),
    )
