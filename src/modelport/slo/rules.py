"""The arithmetic of service levels, pure: slots of time, percentiles out of histograms, what a promise came to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

from modelport.kit.latency import BOUNDS_US
from modelport.settings import ModelSloSettings, SloSettings
from modelport.slo.model import MINUTE_S, Counts, Level, Objective, Promise, Tally, Window

_SECOND_US = 1_000_000
LOWEST_FAULT = 400
_SERVER_FAULT = 500
# The platform or an upstream did not take the call, or did not finish it in time.
_UNAVAILABLE = (503, 504)
# A fast and a slow window must agree, so that neither one bad minute nor an old incident raises an alarm.
# Source: The Site Reliability Workbook, chapter 5, "Multiwindow, Multi-Burn-Rate Alerts".
_ALARM_WINDOWS = ("5m", "1h")


def slot_of(at_us: int, width_s: int) -> int:
    """The beginning of the slot that holds `at_us`."""
    return at_us - at_us % (width_s * _SECOND_US)


def window_start(window: Window, now_us: int) -> int:
    """Where a window begins: at a slot's beginning, so that it is at most one slot longer than it says."""
    return slot_of(now_us - window.seconds * _SECOND_US, window.width_s)


def minutes_between(start_us: int, now_us: int) -> int:
    """How many minutes there have been since `start_us`, the one that is still going on among them."""
    return max((slot_of(now_us, MINUTE_S) - slot_of(start_us, MINUTE_S)) // (MINUTE_S * _SECOND_US) + 1, 0)


def quantiles_ms(good: Mapping[int, int], shares: Sequence[float]) -> list[float | None]:
    """The latencies, in milliseconds, below which these shares of the calls lie; None where there were none.

    Inside a stretch calls are taken to lie evenly; what lies above the last bound counts as that.
    """
    total = sum(good.values())
    if not total:
        return [None] * len(shares)
    return [_quantile_us(good, share * total) / 1000 for share in shares]


def _quantile_us(good: Mapping[int, int], rank: float) -> float:
    seen = 0
    for index in sorted(good):
        calls = good[index]
        if seen + calls >= rank and calls:
            low = BOUNDS_US[index - 1] if index else 0
            high = BOUNDS_US[index] if index < len(BOUNDS_US) else low
            return low + (high - low) * (rank - seen) / calls
        seen += calls
    return float(BOUNDS_US[-1])


def error_rate(counts: Counts) -> float | None:
    """The share of calls that failed through no fault of the caller; None without calls."""
    good, total = _errors(counts)
    return (total - good) / total if total else None


def hit_rate(origins: Mapping[str, int]) -> float | None:
    """The share of calls that could have come from the cache and did; None where there were none."""
    hits = origins.get("hit", 0) + origins.get("follower", 0)
    asked = hits + origins.get("miss", 0)
    return hits / asked if asked else None


def total_of(tally: Tally, *, model: str | None = None) -> Counts:
    """The counts of all endpoints, of one model or of all."""
    total = Counts()
    for (name, _), counts in tally.calls.items():
        if model is None or name == model:
            total.add(counts)
    return total


def terms_of(settings: SloSettings, own: ModelSloSettings | None) -> SloSettings:
    """What is promised of a model: what its row says, and for the rest what is promised of all."""
    if own is None:
        return settings
    changed: dict[str, Any] = own.model_dump(exclude_none=True)
    if own.latency_ms is not None:
        changed["latency_endpoints"] = ["*"]
    return settings.model_copy(update=changed)


def promises(
    tallies: Mapping[Window, Tally], settings: SloSettings, own: Mapping[str, ModelSloSettings]
) -> list[Promise]:
    """Every promise: the platform's own first, then each model's at each endpoint that was called. `own`: those of
    models that have some of their own."""
    found = [_uptime(tallies, settings)]
    for model, endpoint in sorted({key for tally in tallies.values() for key in tally.calls}):
        terms = terms_of(settings, own.get(model))
        counts = {window: tally.calls.get((model, endpoint), Counts()) for window, tally in tallies.items()}
        for objective in (Objective.LATENCY, Objective.ERRORS, Objective.AVAILABILITY):
            if objective is Objective.LATENCY and not has_latency(endpoint, terms):
                continue
            found.append(_promise(objective, (model, endpoint), counts, terms))
    return found


def has_latency(endpoint: str, settings: SloSettings) -> bool:
    """Whether the latency of calls to this endpoint is promised."""
    return any(fnmatchcase(endpoint, pattern) for pattern in settings.latency_endpoints)


def _uptime(tallies: Mapping[Window, Tally], settings: SloSettings) -> Promise:
    target = settings.availability
    levels = tuple(level(window.name, tally.minutes_up, tally.minutes, target) for window, tally in tallies.items())
    return Promise(Objective.UPTIME, None, None, target, None, levels, burning=False)


def _promise(
    objective: Objective, place: tuple[str, str], counts: Mapping[Window, Counts], settings: SloSettings
) -> Promise:
    target, threshold_ms = _target(objective, settings)
    levels = tuple(
        level(window.name, *_good_and_total(objective, found, settings), target) for window, found in counts.items()
    )
    rates = [one.burn_rate for one in levels if one.window in _ALARM_WINDOWS]
    burning = bool(rates) and all(rate is not None and rate >= settings.alarm_burn_rate for rate in rates)
    return Promise(objective, *place, target, threshold_ms, levels, burning)


def _target(objective: Objective, settings: SloSettings) -> tuple[float, float | None]:
    if objective is Objective.LATENCY:
        return settings.latency_share, settings.latency_ms
    return (1 - settings.error_rate if objective is Objective.ERRORS else settings.availability), None


def _good_and_total(objective: Objective, counts: Counts, settings: SloSettings) -> tuple[int, int]:
    if objective is Objective.LATENCY:
        last = BOUNDS_US.index(round(settings.latency_ms * 1000))
        return sum(calls for index, calls in counts.good.items() if index <= last), sum(counts.good.values())
    good, total = _errors(counts)
    if objective is Objective.ERRORS:
        return good, total
    return total - sum(counts.statuses.get(status, 0) for status in _UNAVAILABLE), total


def _errors(counts: Counts) -> tuple[int, int]:
    """Calls that succeeded, and those that count: a caller's own mistakes and hang-ups say nothing of the service."""
    good = sum(calls for status, calls in counts.statuses.items() if status < LOWEST_FAULT)
    bad = sum(calls for status, calls in counts.statuses.items() if status >= _SERVER_FAULT)
    return good, good + bad


def level(window: str, good: int, total: int, target: float) -> Level:
    """What `good` of `total` is worth against a promised share of `target`."""
    if not total:
        return Level(window, good, total, None, None, None)
    attained = good / total
    return Level(window, good, total, attained, (1 - attained) / (1 - target), attained >= target)
