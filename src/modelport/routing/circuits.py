"""Every breaker of this process, kept in step with those of all other processes.

Decisions are local: a call looks at its own process's breaker and nothing else. What crosses the shared state is a
change, which is rare: "opened until then" or "closed", published once, and kept for processes that start later. After
an open breaker's time one process at a time probes, the one that holds the lease. While the state is away each
process goes on alone: its own breakers open, probe and close by what it sees itself.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass

import msgspec
import structlog

from modelport.errors import StateUnavailable
from modelport.kit.clock import Clock
from modelport.observe.metrics import Metrics
from modelport.routing.breaker import Breaker, BreakerState
from modelport.routing.stats import Pulse
from modelport.state.protocol import State

CHANNEL = "circuits"
# A circuit that was opened is kept for new processes until then, if nobody closes it or opens it again.
_KEEP_S = 60.0
_RESUBSCRIBE_S = 0.5

_log = structlog.get_logger("modelport.routing")


@dataclass(frozen=True, slots=True)
class CircuitChange:
    """A breaker of this process that opened or closed because of what it saw; those that follow it are not told."""

    upstream: str
    model: str
    state: BreakerState
    at_us: int


class _News(msgspec.Struct):
    """One change. `until_us` is the wall clock's instant until which it is open; 0: it was closed."""

    origin: str
    target: str
    until_us: int = 0


_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(_News).decode


class Circuits:
    """One per process. Concurrency: the tasks of one event loop."""

    def __init__(
        self,
        pulses: Iterable[Pulse],
        state: State,
        *,
        clock: Clock,
        metrics: Metrics,
        on_change: Callable[[CircuitChange], None] | None = None,
    ) -> None:
        """`on_change` hears of each change once in all processes together: in the one that decided it."""
        self._pulses = {pulse.name: pulse for pulse in pulses if pulse.breaker is not None}
        self._state = state
        self._clock = clock
        self._metrics = metrics
        self._on_change = on_change
        self._origin = secrets.token_hex(8)
        # The latest change of each circuit that is still to be told; bounded by their number.
        self._untold: dict[str, _News] = {}
        self._some = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        """Listen for what other processes see; returns once their open circuits are known, or the state is away."""
        for pulse in self._pulses.values():
            self._metrics.circuit_state(pulse.upstream, pulse.model, BreakerState.CLOSED)
        if self._pulses:
            listening = asyncio.Event()
            self._tasks = [asyncio.create_task(self._listen(listening)), asyncio.create_task(self._tell())]
            await listening.wait()

    async def close(self) -> None:
        """Stop. Idempotent."""
        tasks, self._tasks = self._tasks, []
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def all(self) -> list[tuple[Pulse, Breaker]]:
        """Every target that has a breaker, in the order of the configuration."""
        return [(pulse, pulse.breaker) for pulse in self._pulses.values() if pulse.breaker is not None]

    async def take_probe(self, pulse: Pulse, breaker: Breaker) -> bool:
        """Whether the call that found `Gate.PROBE` is the probe; it must be recorded then, however it ends."""
        # Nobody else of this process may ask while the answer is awaited.
        breaker.leave_probe(self._clock.monotonic_s())
        generation = breaker.generation
        try:
            mine = await self._state.lease(_lease(pulse), self._origin, ttl_s=breaker.rules.open_s)
        except StateUnavailable:
            mine = True
        if not mine or generation != breaker.generation:
            return False
        breaker.begin_probe()
        self._show(pulse, breaker)
        return True

    def changed(self, pulse: Pulse, breaker: Breaker) -> None:
        """A breaker opened or closed because of what this process saw: have everybody hear of it."""
        self._show(pulse, breaker)
        now_us = self._clock.now_us()
        opened = breaker.state is BreakerState.OPEN
        until_us = now_us + round(breaker.rules.open_s * 1_000_000) if opened else 0
        self._untold[pulse.name] = _News(self._origin, pulse.name, until_us)
        self._some.set()
        tell = _log.warning if opened else _log.info
        tell("circuit_opened" if opened else "circuit_closed", upstream=pulse.upstream, model=pulse.model)
        if self._on_change is not None:
            self._on_change(CircuitChange(pulse.upstream, pulse.model, breaker.state, now_us))

    def _show(self, pulse: Pulse, breaker: Breaker) -> None:
        self._metrics.circuit_state(pulse.upstream, pulse.model, breaker.state)

    async def _tell(self) -> None:
        while True:
            await self._some.wait()
            self._some.clear()
            while self._untold:
                news = self._untold.pop(next(iter(self._untold)))
                # While the state is away everybody finds out alone.
                with suppress(StateUnavailable):
                    await self._publish(news)

    async def _publish(self, news: _News) -> None:
        pulse = self._pulses[news.target]
        message = _encode(news)
        if news.until_us and pulse.breaker is not None:
            await self._state.set(_key(pulse), message, ttl_s=pulse.breaker.rules.open_s + _KEEP_S)
        else:
            await self._state.delete(_key(pulse))
        await self._state.publish(CHANNEL, message)
        # Whoever comes first may probe next time.
        await self._state.release(_lease(pulse), self._origin)

    async def _listen(self, listening: asyncio.Event) -> None:
        while True:
            # A message that can't be read comes from another version of the program.
            with suppress(StateUnavailable, msgspec.DecodeError):
                async with self._state.subscribe(CHANNEL) as messages:
                    await self._catch_up()
                    listening.set()
                    async for message in messages:
                        self._apply(_decode(message))
            listening.set()
            await asyncio.sleep(_RESUBSCRIBE_S)

    async def _catch_up(self) -> None:
        """Take over what others have opened. What is open here and nowhere else goes on to heal by itself."""
        for pulse in self._pulses.values():
            kept = await self._state.get(_key(pulse))
            if kept is not None:
                self._apply(_decode(kept))

    def _apply(self, news: _News) -> None:
        pulse = self._pulses.get(news.target)
        if news.origin == self._origin or pulse is None or pulse.breaker is None:
            return
        breaker = pulse.breaker
        if not news.until_us:
            breaker.close()
        else:
            # Clocks of machines differ; a wrong one must not keep a circuit open longer than the rules say.
            left_s = (news.until_us - self._clock.now_us()) / 1_000_000
            breaker.open(self._clock.monotonic_s() + min(max(left_s, 0.0), breaker.rules.open_s))
        self._show(pulse, breaker)
        what = "circuit_opened" if news.until_us else "circuit_closed"
        _log.info(what, upstream=pulse.upstream, model=pulse.model, seen_by="another process")


def _key(pulse: Pulse) -> str:
    return f"circuit:{pulse.name}"


def _lease(pulse: Pulse) -> str:
    return f"circuit:{pulse.name}:probe"
