"""A breaker opens when too many calls are bad, lets one at a time through, and closes when they are good again."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modelport.routing.breaker import PROBE_AGAIN_S, SLOTS, Breaker, BreakerRules, BreakerState, Gate, Outcome

RULES = BreakerRules(window_s=10.0, min_calls=4, error_rate=0.5, slow_call_s=1.0, slow_rate=0.5, open_s=5.0, probes=2)


def record(breaker: Breaker, outcome: Outcome, now_s: float, *, latency_s: float = 0.0) -> bool:
    return breaker.record(outcome, now_s, generation=breaker.generation, latency_s=latency_s)


def opened(rules: BreakerRules = RULES) -> Breaker:
    breaker = Breaker(rules)
    for _ in range(rules.min_calls):
        record(breaker, Outcome.BAD, 0.0)
    assert breaker.state is BreakerState.OPEN
    return breaker


class TestOpening:
    def test_too_few_calls_never_open_it(self) -> None:
        breaker = Breaker(RULES)
        assert [record(breaker, Outcome.BAD, 0.0) for _ in range(3)] == [False] * 3
        assert breaker.gate(0.0) is Gate.FREE

    def test_it_opens_with_the_call_that_reaches_the_rate(self) -> None:
        breaker = Breaker(RULES)
        for _ in range(3):
            record(breaker, Outcome.GOOD, 0.0)
        assert [record(breaker, Outcome.BAD, 0.0) for _ in range(3)] == [False, False, True]
        assert breaker.gate(4.9) is Gate.SHUT

    def test_slow_calls_open_it_though_they_end_well(self) -> None:
        breaker = Breaker(RULES)
        assert [record(breaker, Outcome.GOOD, 0.0, latency_s=1.5) for _ in range(4)] == [False] * 3 + [True]

    def test_calls_that_left_the_window_do_not_count(self) -> None:
        breaker = Breaker(RULES)
        for _ in range(3):
            record(breaker, Outcome.BAD, 0.0)
        assert not record(breaker, Outcome.BAD, 10.5)
        assert (breaker.calls, breaker.bad) == (1, 1)

    def test_what_says_nothing_of_the_target_is_not_counted(self) -> None:
        breaker = Breaker(RULES)
        for _ in range(20):
            assert not record(breaker, Outcome.NEUTRAL, 0.0, latency_s=9.0)
        assert breaker.calls == 0

    def test_a_call_from_before_the_change_changes_nothing(self) -> None:
        breaker = Breaker(RULES)
        before = breaker.generation
        for _ in range(4):
            record(breaker, Outcome.BAD, 0.0)
        breaker.begin_probe()
        assert not breaker.record(Outcome.BAD, 6.0, generation=before)
        assert breaker.state is BreakerState.HALF_OPEN


class TestProbing:
    def test_one_call_at_a_time_and_closed_after_enough_good_ones(self) -> None:
        breaker = opened()
        assert breaker.gate(5.0) is Gate.PROBE
        breaker.begin_probe()
        assert breaker.gate(5.1) is Gate.SHUT
        assert not record(breaker, Outcome.GOOD, 5.2)
        assert breaker.gate(5.2) is Gate.PROBE
        breaker.begin_probe()
        assert record(breaker, Outcome.GOOD, 5.3)
        assert breaker.gate(5.3) is Gate.FREE

    def test_a_bad_probe_opens_it_for_the_whole_time_again(self) -> None:
        breaker = opened()
        breaker.begin_probe()
        assert record(breaker, Outcome.BAD, 6.0)
        assert breaker.gate(10.9) is Gate.SHUT
        assert breaker.gate(11.0) is Gate.PROBE

    def test_a_probe_that_says_nothing_leaves_the_place_to_the_next(self) -> None:
        breaker = opened()
        breaker.begin_probe()
        assert not record(breaker, Outcome.NEUTRAL, 6.0)
        assert (breaker.state, breaker.gate(6.0)) == (BreakerState.HALF_OPEN, Gate.PROBE)

    def test_when_another_process_probes_this_one_asks_again_a_little_later(self) -> None:
        breaker = opened()
        breaker.leave_probe(5.0)
        assert breaker.gate(5.0) is Gate.SHUT
        assert breaker.gate(5.0 + PROBE_AGAIN_S) is Gate.PROBE
        assert breaker.wait_s(5.0) == PROBE_AGAIN_S

    def test_what_others_saw_counts_at_once(self) -> None:
        breaker = Breaker(RULES)
        breaker.open(3.0)
        assert breaker.gate(2.9) is Gate.SHUT
        breaker.close()
        assert (breaker.gate(0.0), breaker.calls) == (Gate.FREE, 0)


class _Model:
    """What the breaker must do, written down without sliding counts: it remembers every call."""

    def __init__(self, rules: BreakerRules) -> None:
        self.rules = rules
        self.calls: list[tuple[int, bool, bool]] = []

    def record(self, outcome: Outcome, now_s: float, latency_s: float) -> bool:
        slot = int(now_s / (self.rules.window_s / SLOTS))
        bad, slow = outcome is Outcome.BAD, latency_s > (self.rules.slow_call_s or 1e9)
        self.calls.append((slot, bad, slow))
        window = [call for call in self.calls if call[0] > slot - SLOTS]
        if len(window) < self.rules.min_calls or not (bad or slow):
            return False
        errors, slows = sum(call[1] for call in window), sum(call[2] for call in window)
        return (errors > 0 and errors >= self.rules.error_rate * len(window)) or (
            slows > 0 and slows >= self.rules.slow_rate * len(window)
        )


_calls = st.lists(
    st.tuples(
        st.sampled_from([Outcome.GOOD, Outcome.BAD]),
        st.floats(0.0, 4.0, allow_nan=False),
        st.sampled_from([0.1, 2.0]),
    ),
    max_size=60,
)


@settings(max_examples=300, deadline=None)
@given(
    calls=_calls,
    min_calls=st.integers(1, 8),
    error_rate=st.sampled_from([0.1, 0.5, 1.0]),
    slow_rate=st.sampled_from([0.3, 1.0]),
    window_s=st.sampled_from([0.5, 3.0, 30.0]),
)
def test_it_opens_exactly_when_the_window_says_so(
    calls: list[Any], min_calls: int, error_rate: float, slow_rate: float, window_s: float
) -> None:
    rules = BreakerRules(window_s, min_calls, error_rate, 1.0, slow_rate)
    breaker, model, now_s = Breaker(rules), _Model(rules), 0.0
    for outcome, pause_s, latency_s in calls:
        now_s += pause_s
        expected = model.record(outcome, now_s, latency_s)
        assert record(breaker, outcome, now_s, latency_s=latency_s) is expected
        if expected:
            assert breaker.state is BreakerState.OPEN
            return
        assert breaker.state is BreakerState.CLOSED


@settings(max_examples=200, deadline=None)
@given(steps=st.lists(st.tuples(st.sampled_from(["probe", "good", "bad", "neutral", "wait", "open", "close"]),
                                st.floats(0.0, 6.0, allow_nan=False)), max_size=60))  # fmt: skip
def test_never_two_probes_at_once_and_never_stuck(steps: list[tuple[str, float]]) -> None:
    breaker, now_s, probes = opened(), 0.0, 0
    words = {"good": Outcome.GOOD, "bad": Outcome.BAD, "neutral": Outcome.NEUTRAL}
    for step, pause_s in steps:
        if step == "wait":
            now_s += pause_s
        elif step == "probe" and breaker.gate(now_s) is Gate.PROBE:
            assert probes == 0
            breaker.begin_probe()
            probes = 1
        elif step in words and probes:
            record(breaker, words[step], now_s)
            probes = 0
        elif step in ("open", "close"):
            breaker.open(now_s + 1.0) if step == "open" else breaker.close()
            probes = 0
    # Whatever happened: once the last probe has ended and the time is over, a call gets through.
    if probes:
        record(breaker, Outcome.NEUTRAL, now_s)
    assert breaker.gate(now_s + RULES.open_s + PROBE_AGAIN_S) is not Gate.SHUT


@pytest.mark.parametrize("state", list(BreakerState))
def test_worse_is_larger(state: BreakerState) -> None:
    """The metric shows the largest value of all workers."""
    assert [BreakerState.CLOSED, BreakerState.HALF_OPEN, BreakerState.OPEN][state] is state
