"""What was measured, and what follows from it: medians, ratios inside one round, verdicts on the targets. Pure."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from statistics import median

DIRECT = "direct"
OURS = "modelport"


@dataclass(frozen=True, slots=True)
class Scenario:
    """One kind of load. `share` is its part of the seconds that the command line gives."""

    name: str
    title: str
    stream: bool
    connections: int
    share: float
    without: frozenset[str] = frozenset()


WHOLE_64 = Scenario("whole_64", "JSON, 64 clients", False, 64, 1.0)
WHOLE_1 = Scenario("whole_1", "JSON, one client", False, 1, 0.5)
STREAM_16 = Scenario("stream_16", "streams, 16 clients", True, 16, 0.5)
STREAM_64 = Scenario("stream_64", "streams, 64 clients", True, 64, 1.0)
# The upstream takes 20 ms over a stream, so 64 clients can't ask for more than 3,200 a second: only this one fills
# the core of a fast gateway. More would fill the load generator's own core instead. LiteLLM, whose core the 64
# clients fill many times over, is left out.
STREAM_128 = Scenario("stream_128", "streams, 128 clients", True, 128, 1.0, frozenset({"litellm"}))
SCENARIOS = (WHOLE_64, WHOLE_1, STREAM_16, STREAM_64, STREAM_128)


@dataclass(frozen=True, slots=True)
class Measurement:
    """One load on one target. `core_share` is how much of its core the gateway itself had."""

    calls: int
    wrong: int
    errors: int
    calls_per_s: float
    p50_ms: float
    p99_ms: float
    first_p50_ms: float
    cpu_us_per_call: float
    core_share: float

    @property
    def clean(self) -> bool:
        """Whether every answer was right. The speed of wrong ones means nothing, so it proves no target."""
        return not (self.wrong or self.errors) and self.calls > 0


@dataclass(slots=True)
class Figures:
    """Every measurement: `rounds[scenario][target]` holds one a round, in order."""

    rounds: dict[str, dict[str, list[Measurement]]] = field(default_factory=dict)

    def add(self, scenario: Scenario, target: str, measurement: Measurement) -> None:
        self.rounds.setdefault(scenario.name, {}).setdefault(target, []).append(measurement)

    def of(self, scenario: Scenario, target: str) -> list[Measurement]:
        return self.rounds.get(scenario.name, {}).get(target, [])

    def median(self, scenario: Scenario, target: str, value: Callable[[Measurement], float]) -> float | None:
        """The middle one of the clean rounds, or None where there is none."""
        found = [value(measurement) for measurement in self.of(scenario, target) if measurement.clean]
        return median(found) if found else None

    def compared(
        self,
        scenario: Scenario,
        targets: tuple[str, str],
        value: Callable[[Measurement, Measurement], float],
    ) -> float | None:
        """The median over the rounds of `value(first, second)`, both from the same clean round; None without any.

        Inside one round both met the same noise, so this is steadier than a comparison of medians.
        """
        rounds = zip(self.of(scenario, targets[0]), self.of(scenario, targets[1]), strict=False)
        pairs = [(first, second) for first, second in rounds if first.clean and second.clean]
        return median([value(first, second) for first, second in pairs]) if pairs else None

    def speed_ratio(self, scenario: Scenario, first: str, second: str) -> float | None:
        return self.compared(scenario, (first, second), lambda a, b: a.calls_per_s / max(b.calls_per_s, 1e-9))

    def cpu_ratio(self, scenario: Scenario, first: str, second: str) -> float | None:
        """How many calls `first` answers with the CPU time that `second` takes for one."""
        return self.compared(scenario, (first, second), lambda a, b: b.cpu_us_per_call / max(a.cpu_us_per_call, 1e-9))

    def added_p50_ms(self, scenario: Scenario, target: str) -> float | None:
        return self.compared(scenario, (target, DIRECT), lambda a, b: a.p50_ms - b.p50_ms)

    def added_first_p50_ms(self, scenario: Scenario, target: str) -> float | None:
        return self.compared(scenario, (target, DIRECT), lambda a, b: a.first_p50_ms - b.first_p50_ms)


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether one target of the first stage holds; `found` is None where it could not be measured."""

    target: str
    found: float | None
    unit: str
    holds: bool | None


def verdicts(figures: Figures, *, chunks: int) -> list[Verdict]:
    """The first stage's targets. At 64 clients the upstream's pace holds nginx back, so 128 must hold as well."""
    of_chunks = [
        figures.median(scenario, OURS, lambda m: m.cpu_us_per_call / chunks)
        for scenario in (STREAM_16, STREAM_64, STREAM_128)
    ]
    chunk_us = max((value for value in of_chunks if value is not None), default=None)
    streams = "at least 0.6 of nginx"
    return [
        _at_least(
            "calls/s, JSON, 64 clients: at least 0.10 of nginx", figures.speed_ratio(WHOLE_64, OURS, "nginx"), 0.10
        ),
        _at_least(
            "calls/s, JSON, 64 clients: at least 40 × LiteLLM", figures.speed_ratio(WHOLE_64, OURS, "litellm"), 40
        ),
        _at_least(f"streams/s, 64 clients: {streams}", figures.speed_ratio(STREAM_64, OURS, "nginx"), 0.6),
        _at_least(f"streams/s, 128 clients: {streams}", figures.speed_ratio(STREAM_128, OURS, "nginx"), 0.6),
        _below("first chunk, 16 clients, added p50: under 1 ms", figures.added_first_p50_ms(STREAM_16, OURS), 1, "ms"),
        _below("CPU a chunk, the worst of 16, 64 and 128 clients: at most 40 µs", chunk_us, 40, "µs"),
    ]


def _at_least(target: str, found: float | None, bound: float) -> Verdict:
    return Verdict(target, found, "×", None if found is None else found >= bound)


def _below(target: str, found: float | None, bound: float, unit: str) -> Verdict:
    return Verdict(target, found, unit, None if found is None else found <= bound)
