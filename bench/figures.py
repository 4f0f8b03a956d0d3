"""What was measured, and what follows from it: medians, ratios inside one round, verdicts on the targets. Pure."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from statistics import median

# The gateways that wait for their turn stay below it together.
MOST_FOREIGN_SHARE = 0.1
DIRECT = "direct"
OURS = "modelport"
# Modelport with everything on that a model can have.
FULL = "modelport-full"


# What nginx took for a stream of 21 events, of 64 at once, on the machine that the targets were set on.
_NGINX_STREAM_US = 208


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
    """One load on one target.

    `core_share`: how much of its core the gateway had; `foreign_share`: how much of it all programs had that have no
    part in this measurement, the gateways that wait for their turn among them.
    """

    calls: int
    wrong: int
    errors: int
    calls_per_s: float
    p50_ms: float
    p99_ms: float
    first_p50_ms: float
    cpu_us_per_call: float
    core_share: float
    foreign_share: float

    @property
    def clean(self) -> bool:
        """Whether every answer was right. The speed of wrong ones means nothing, so it proves no target."""
        return not (self.wrong or self.errors) and self.calls > 0

    @property
    def quiet(self) -> bool:
        """Whether the machine was left alone: what others take from one gateway they do not take from the next."""
        return self.foreign_share <= MOST_FOREIGN_SHARE


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
        *,
        quiet: bool = False,
    ) -> float | None:
        """The median over the rounds of `value(first, second)`, both from the same clean round; None without any.

        Inside one round both met the same noise, so this is steadier than a comparison of medians. With `quiet`, only
        rounds count in which both had the machine to themselves.
        """
        rounds = zip(self.of(scenario, targets[0]), self.of(scenario, targets[1]), strict=False)
        pairs = [pair for pair in rounds if all(one.clean and (one.quiet or not quiet) for one in pair)]
        return median([value(first, second) for first, second in pairs]) if pairs else None

    def speed_ratio(self, scenario: Scenario, first: str, second: str, *, quiet: bool = False) -> float | None:
        """How many calls a second `first` answers for one of `second`."""
        return self.compared(
            scenario, (first, second), lambda a, b: a.calls_per_s / max(b.calls_per_s, 1e-9), quiet=quiet
        )

    def cpu_ratio(self, scenario: Scenario, first: str, second: str) -> float | None:
        """How many calls `first` answers with the CPU time that `second` takes for one."""
        return self.compared(scenario, (first, second), lambda a, b: b.cpu_us_per_call / max(a.cpu_us_per_call, 1e-9))

    def added_p50_ms(self, scenario: Scenario, target: str) -> float | None:
        return self.compared(scenario, (target, DIRECT), lambda a, b: a.p50_ms - b.p50_ms)

    def added_first_p50_ms(self, scenario: Scenario, target: str, *, quiet: bool = False) -> float | None:
        return self.compared(scenario, (target, DIRECT), lambda a, b: a.first_p50_ms - b.first_p50_ms, quiet=quiet)


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether one target of the first stage holds.

    `found` is None where it was not measured; `holds` is None then, and where the machine was too busy to judge.
    """

    target: str
    found: float | None
    unit: str
    holds: bool | None


def second_verdicts(figures: Figures, *, chunks: int) -> list[Verdict]:
    """The second stage's targets, for Modelport with everything on."""
    return [
        _speed(figures, "calls/s, JSON, 64 clients: at least 0.25 of nginx", WHOLE_64, "nginx", 0.25, ours=FULL),
        _speed(figures, "streams/s, 64 clients: at least 0.8 of nginx", STREAM_64, "nginx", 0.8, ours=FULL),
        _chunk(figures, chunks=chunks, most_us=25.0, ours=FULL),
    ]


def verdicts(figures: Figures, *, chunks: int) -> list[Verdict]:
    """The first stage's targets. They were set for 64 clients, so what 128 get is told and not judged."""
    return [
        _speed(figures, "calls/s, JSON, 64 clients: at least 0.10 of nginx", WHOLE_64, "nginx", 0.10),
        _speed(figures, "calls/s, JSON, 64 clients: at least 40 × LiteLLM", WHOLE_64, "litellm", 40),
        _speed(figures, "streams/s, 64 clients: at least 0.6 of nginx", STREAM_64, "nginx", 0.6),
        _first_chunk(figures, most_ms=1.0),
        _chunk(figures, chunks=chunks, most_us=40.0),
    ]


def _speed(figures: Figures, target: str, scenario: Scenario, peer: str, least: float, *, ours: str = OURS) -> Verdict:
    found = figures.speed_ratio(scenario, ours, peer, quiet=True)
    if found is None:
        return Verdict(target, figures.speed_ratio(scenario, ours, peer), "×", None)
    return Verdict(target, found, "×", found >= least)


def _first_chunk(figures: Figures, *, most_ms: float) -> Verdict:
    target = f"first chunk, 16 clients, added p50: under {most_ms:g} ms"
    found = figures.added_first_p50_ms(STREAM_16, OURS, quiet=True)
    if found is None:
        return Verdict(target, figures.added_first_p50_ms(STREAM_16, OURS), "ms", None)
    return Verdict(target, found, "ms", found < most_ms)


def _chunk(figures: Figures, *, chunks: int, most_us: float, ours: str = OURS) -> Verdict:
    """Processor time hardly depends on others, so it is judged on a busy machine too.

    The target was set on a machine on which nginx takes `_NGINX_STREAM_US` a stream, so it is judged in that machine's
    microseconds: how much slower this one is shows in what nginx takes here, in the same run.
    """
    target = f"CPU a chunk, the worst of 16, 64 and 128 clients, in µs of the reference machine: at most {most_us:g}"
    of_chunks = [
        figures.median(scenario, ours, lambda m: m.cpu_us_per_call / chunks)
        for scenario in (STREAM_16, STREAM_64, STREAM_128)
    ]
    found = max((value for value in of_chunks if value is not None), default=None)
    nginx_us = figures.median(STREAM_64, "nginx", lambda m: m.cpu_us_per_call)
    if found is None or nginx_us is None:
        return Verdict(target, found, "µs", None)
    scaled = found * _NGINX_STREAM_US / nginx_us
    return Verdict(target, scaled, "µs", scaled <= most_us)
