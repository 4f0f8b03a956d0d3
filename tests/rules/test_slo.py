"""What a promise came to: shares, burn rates and percentiles out of counted stretches."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from modelport.kit.latency import BOUNDS_S, BOUNDS_US
from modelport.settings import ModelSloSettings, SloSettings
from modelport.slo.model import HOUR_S, MINUTE_S, WINDOWS, Counts, Objective, Promise, Tally, Window
from modelport.slo.rules import has_latency, hit_rate, minutes_between, promises, quantiles_ms, slot_of, window_start

MINUTE_US = 60_000_000
SETTINGS = SloSettings()
PREDICT = ("iris", "/v1/predict")


def counted(statuses: dict[int, int], good: dict[int, int] | None = None) -> Counts:
    return Counts(Counter(statuses), Counter(good or {}))


def told(
    counts: Counts, settings: SloSettings = SETTINGS, own: dict[str, ModelSloSettings] | None = None
) -> dict[Objective, Promise]:
    """The promises of one model whose calls were the same in every window."""
    tallies = {window: Tally(0, 1, calls={PREDICT: counts}) for window in WINDOWS}
    return {promise.objective: promise for promise in promises(tallies, settings, own or {})}


def test_calls_below_the_bound_are_in_time_and_those_above_are_late() -> None:
    at = BOUNDS_S.index(0.2)
    latency = told(counted({200: 100}, {at: 96, at + 1: 4}))[Objective.LATENCY]
    assert [(level.good, level.total, level.met) for level in latency.levels] == [(96, 100, True)] * 3
    assert latency.levels[0].burn_rate == pytest.approx(0.8)
    assert not latency.burning
    late = told(counted({200: 100}, {at: 94, at + 1: 6}))[Objective.LATENCY]
    assert [level.met for level in late.levels] == [False] * 3


def test_a_callers_own_mistakes_and_hang_ups_are_no_failures_of_ours_and_no_successes() -> None:
    found = told(counted({200: 999, 400: 500, 404: 1, 429: 7, 499: 3, 502: 1}))
    errors = found[Objective.ERRORS].levels[0]
    assert (errors.good, errors.total, errors.met) == (999, 1000, True)
    assert found[Objective.AVAILABILITY].levels[0].attained == 1.0


def test_calls_that_are_not_taken_count_against_availability() -> None:
    availability = told(counted({200: 90, 500: 5, 503: 4, 504: 1}))[Objective.AVAILABILITY]
    assert (availability.levels[0].good, availability.levels[0].total) == (95, 100)
    assert availability.levels[0].burn_rate == pytest.approx(50)


def test_a_promise_burns_only_when_both_the_fast_and_the_slow_window_say_so() -> None:
    bad, good = counted({200: 90, 500: 10}), counted({200: 100_000})
    both = {window: Tally(0, 1, calls={PREDICT: bad}) for window in WINDOWS}
    fast_alone = both | {window: Tally(0, 1, calls={PREDICT: good}) for window in WINDOWS[1:]}
    for tallies, burning in ((both, True), (fast_alone, False)):
        found = {promise.objective: promise.burning for promise in promises(tallies, SETTINGS, {})}
        assert found[Objective.ERRORS] is burning


def test_without_calls_nothing_is_met_and_nothing_is_missed() -> None:
    (uptime,) = promises({window: Tally(0, 1) for window in WINDOWS}, SETTINGS, {})
    assert uptime.objective is Objective.UPTIME
    assert {level.met for level in uptime.levels} == {None}


def test_latency_is_promised_where_the_settings_say_and_only_there() -> None:
    assert has_latency("/v1/predict", SETTINGS)
    assert has_latency("/v2/models/iris/infer", SETTINGS)
    assert not has_latency("/v1/chat/completions", SETTINGS)
    assert Objective.LATENCY not in told(counted({200: 1}), SloSettings(latency_endpoints=[]))


def test_a_models_own_promises_replace_those_of_all_and_what_it_leaves_open_stays() -> None:
    at = BOUNDS_S.index(0.05)
    counts = counted({200: 100, 500: 1}, {at: 90, at + 1: 10})
    own = {"iris": ModelSloSettings(latency_ms=50, error_rate=0.5)}
    found = told(counts, SloSettings(latency_endpoints=[]), own)
    assert (found[Objective.LATENCY].threshold_ms, found[Objective.LATENCY].levels[0].good) == (50, 90)
    assert [found[name].levels[0].met for name in (Objective.LATENCY, Objective.ERRORS)] == [False, True]
    assert found[Objective.AVAILABILITY].target == 0.999
    assert told(counts, own={"other": own["iris"]})[Objective.LATENCY].levels[0].met is True


def test_a_bound_that_nothing_is_counted_by_is_refused_with_those_that_are() -> None:
    with pytest.raises(ValidationError, match=r"is one of 1, 2\.5, 5, 10"):
        SloSettings(latency_ms=210)
    with pytest.raises(ValidationError, match="is one of"):
        ModelSloSettings(latency_ms=210)


def test_a_window_begins_at_a_slot_and_is_never_shorter_than_it_says() -> None:
    now_us = 1_767_225_600_000_000 + 61_000_000
    five, _, month = WINDOWS
    assert now_us - window_start(five, now_us) == 300_000_000 + 1_000_000
    assert window_start(month, now_us) % (HOUR_S * 1_000_000) == 0
    assert slot_of(now_us, MINUTE_S) == now_us - 1_000_000


def test_minutes_are_counted_with_the_one_that_goes_on() -> None:
    start = 1_767_225_600_000_000
    assert [minutes_between(start, start + seconds * 1_000_000) for seconds in (0, 59, 60, 300)] == [1, 1, 2, 6]
    assert minutes_between(start + MINUTE_US * 9, start) == 0


def test_hits_are_shared_among_the_calls_that_could_have_hit() -> None:
    assert hit_rate({"hit": 2, "follower": 1, "miss": 1, "bypass": 50}) == 0.75
    assert hit_rate({"bypass": 1}) is None


@given(st.lists(st.integers(min_value=1, max_value=700_000_000), min_size=1, max_size=50), st.floats(0.01, 0.99))
def test_a_percentile_lies_in_the_stretch_of_the_call_that_has_that_rank(latencies: list[int], share: float) -> None:
    good: dict[int, int] = {}
    for latency in latencies:
        index = sum(bound < latency for bound in BOUNDS_US)
        good[index] = good.get(index, 0) + 1
    (found,) = quantiles_ms(good, [share])
    assert found is not None
    rank = -int(-share * len(latencies) // 1)
    exact = sum(bound < sorted(latencies)[rank - 1] for bound in BOUNDS_US)
    low = BOUNDS_US[exact - 1] if exact else 0
    high = BOUNDS_US[exact] if exact < len(BOUNDS_US) else BOUNDS_US[-1]
    assert low / 1000 <= found <= high / 1000 + 1e-6


def test_percentiles_of_nothing_are_none() -> None:
    assert quantiles_ms({}, [0.5, 0.99]) == [None, None]


def test_every_window_reaches_back_in_slots_that_are_kept() -> None:
    assert WINDOWS[-1] == Window("30d", 2_592_000, HOUR_S)
