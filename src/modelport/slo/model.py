"""The words of service levels: what is counted, over which windows, and what is promised."""

from __future__ import annotations

import enum
from collections import Counter
from dataclasses import dataclass, field
from typing import NamedTuple

MINUTE_S = 60
HOUR_S = 3_600


class Objective(enum.StrEnum):
    """What can be promised. All are shares of calls, except `UPTIME`, a share of minutes."""

    LATENCY = "latency"
    ERRORS = "errors"
    AVAILABILITY = "availability"
    UPTIME = "uptime"


class Window(NamedTuple):
    """The last so many seconds, put together from slots `width_s` wide; the first may begin a slot earlier."""

    name: str
    seconds: int
    width_s: int


WINDOWS = (
    Window("5m", 300, MINUTE_S),
    Window("1h", 3_600, MINUTE_S),
    Window("30d", 30 * 86_400, HOUR_S),
)


@dataclass(slots=True)
class Counts:
    """The calls of one model at one endpoint in one window.

    `statuses`: calls by status. `good`: those that succeeded, by the stretch of `kit.latency` they fell into.
    """

    statuses: Counter[int] = field(default_factory=Counter)
    good: Counter[int] = field(default_factory=Counter)
    versions: Counter[str] = field(default_factory=Counter)

    def add(self, other: Counts) -> None:
        self.statuses.update(other.statuses)
        self.good.update(other.good)
        self.versions.update(other.versions)


@dataclass(slots=True)
class Tally:
    """All that one window holds. `calls` by (model, endpoint), `cache` by model and origin.

    `minutes_up` of `minutes`: since the window's beginning, or the platform's first start where that is later.
    """

    start_us: int
    end_us: int
    calls: dict[tuple[str, str], Counts] = field(default_factory=dict)
    cache: dict[str, Counter[str]] = field(default_factory=dict)
    minutes_up: int = 0
    minutes: int = 0


@dataclass(frozen=True, slots=True)
class Level:
    """What came of one promise in one window: `good` of `total`. `attained` is None where nothing happened.

    `burn_rate`: how many times faster than allowed the rest is spent; 1 spends it exactly by the end of a window.
    """

    window: str
    good: int
    total: int
    attained: float | None
    burn_rate: float | None
    met: bool | None


@dataclass(frozen=True, slots=True)
class Promise:
    """One promise and its levels, one a window. `model` and `endpoint` are None for the whole platform's."""

    objective: Objective
    model: str | None
    endpoint: str | None
    target: float
    threshold_ms: float | None
    levels: tuple[Level, ...]
    burning: bool
