"""Who is asked, in what order, and what follows a failure: the rules of routing, without a clock or a socket."""

from __future__ import annotations

import math
import random
from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modelport import errors
from modelport.backends.protocol import Target
from modelport.backends.sandbox import SandboxBackend
from modelport.calls import Patience
from modelport.errors import BadRequest, ModelportError, UpstreamRejected
from modelport.routing.breaker import Breaker, BreakerRules, Outcome
from modelport.routing.configured import fallbacks_of, policy_of
from modelport.routing.model import Candidate, Cause, Leg, Policy, Route
from modelport.routing.override import apply_override, parse_override
from modelport.routing.plan import MAX_ATTEMPTS, Itinerary, order
from modelport.routing.retry import RetryRatio, backoff_s, cause_of, may_go_elsewhere, may_repeat, outcome_of
from modelport.routing.split import weighted_order
from modelport.routing.stats import MIN_SAMPLES, STALE_S, Pulse
from modelport.settings import ModelSettings

BACKEND = SandboxBackend()


def candidate(name: str, *, weight: int = 1, price: int = 0, local: bool = False) -> Candidate:
    breaker = None if local else Breaker(BreakerRules())
    upstream = "" if local else name
    return Candidate(Target(BACKEND, "m", upstream, weight), Pulse(upstream, "m", breaker), price)


def route(*candidates: Candidate, policy: Policy | None = None, **fallbacks: tuple[str, ...]) -> Route:
    causes = {Cause(name): models for name, models in fallbacks.items()}
    return Route("asked", "1", candidates, policy or Policy(), causes)


def itinerary(
    route: Route, *, latest_s: float = 100.0, others: dict[str, Route] | None = None, ratio: RetryRatio | None = None
) -> Itinerary:
    return Itinerary(
        route,
        route.policy,
        latest_s=latest_s,
        ratio=ratio or RetryRatio(0.2, 50),
        find=(others or {}).get,
        draw=random.Random(1).random,
    )


def names(candidates: list[Candidate]) -> list[str]:
    return [candidate.pulse.upstream for candidate in candidates]


def walk(trip: Itinerary, causes: list[Cause], *, now_s: float = 0.0) -> list[str]:
    """The upstreams that are asked when each attempt fails of the next cause."""
    leg, asked = trip.first(now_s), []
    for cause in [*causes, None]:
        if leg is None:
            break
        asked.append(leg.candidate.pulse.upstream)
        if cause is None:
            break
        now_s += leg.wait_s
        leg = trip.after(leg.candidate, cause, now_s=now_s)
    return asked


class TestSplit:
    @settings(max_examples=200, deadline=None)
    @given(weights=st.lists(st.integers(0, 5), max_size=6), draws=st.lists(st.floats(0, 0.999), min_size=6, max_size=6))
    def test_every_target_comes_once_and_the_same_draws_give_the_same_order(
        self, weights: list[int], draws: list[float]
    ) -> None:
        found = weighted_order(weights, iter(draws).__next__)
        assert sorted(found) == list(range(len(weights)))
        assert weighted_order(weights, iter(draws).__next__) == found
        zeros = [index for index, weight in enumerate(weights) if weight == 0]
        assert found[len(found) - len(zeros) :] == zeros

    def test_the_shares_are_the_weights(self) -> None:
        draw = random.Random(7).random
        firsts = Counter(weighted_order([1, 2, 5, 0], draw)[0] for _ in range(16_000))
        assert [firsts[index] / 2_000 for index in range(4)] == pytest.approx([1, 2, 5, 0], rel=0.05)

    def test_who_is_left_shares_in_proportion(self) -> None:
        draw = random.Random(7).random
        orders = [weighted_order([6, 1, 3], draw) for _ in range(12_000)]
        seconds = Counter(found[1] for found in orders if found[0] == 0)
        assert seconds[2] / seconds[1] == pytest.approx(3.0, rel=0.1)


class TestOrder:
    def ordered(self, strategy: Any, *candidates: Candidate, now_s: float = 0.0) -> list[str]:
        policy = Policy(strategy=strategy)
        return names(order(route(*candidates), policy, now_s=now_s, draw=random.Random(1).random))

    def test_priority_is_the_order_of_the_configuration(self) -> None:
        assert self.ordered("priority", candidate("a"), candidate("b", weight=9), candidate("c")) == ["a", "b", "c"]

    def test_the_least_busy_comes_first_in_proportion_to_its_weight(self) -> None:
        one, two = candidate("a", weight=1), candidate("b", weight=4)
        one.pulse.outstanding, two.pulse.outstanding = 2, 4
        assert self.ordered("least_outstanding", one, two) == ["b", "a"]

    def test_the_cheapest_comes_first(self) -> None:
        assert self.ordered("cheapest", candidate("a", price=30), candidate("b", price=20)) == ["b", "a"]

    def test_the_fastest_comes_first_unless_it_is_busy(self) -> None:
        fast, slow = candidate("fast"), candidate("slow")
        fast.pulse.answered(0.1, 0.0)
        slow.pulse.answered(0.25, 0.0)
        assert self.ordered("lowest_latency", slow, fast) == ["fast", "slow"]
        fast.pulse.outstanding = 2
        assert self.ordered("lowest_latency", slow, fast) == ["slow", "fast"]

    def test_one_of_which_nothing_was_heard_lately_is_tried_by_one_call(self) -> None:
        fast, stale = candidate("fast"), candidate("stale")
        stale.pulse.answered(5.0, 0.0)
        fast.pulse.answered(0.1, STALE_S)
        assert self.ordered("lowest_latency", fast, stale, now_s=STALE_S) == ["stale", "fast"]
        stale.pulse.outstanding = 1
        assert self.ordered("lowest_latency", fast, stale, now_s=STALE_S) == ["fast", "stale"]

    @pytest.mark.parametrize("strategy", ["priority", "weighted", "least_outstanding", "lowest_latency", "cheapest"])
    def test_open_breakers_are_left_out_and_who_asked_for_a_rest_comes_last(self, strategy: str) -> None:
        broken, resting, well = candidate("broken"), candidate("resting"), candidate("well")
        assert broken.pulse.breaker is not None
        broken.pulse.breaker.open(9.0)
        resting.pulse.rests_until_s = 5.0
        assert self.ordered(strategy, broken, resting, well, now_s=1.0) == ["well", "resting"]


class TestStats:
    def test_quantiles_need_enough_samples(self) -> None:
        pulse = Pulse("a", "m", None)
        for number in range(MIN_SAMPLES):
            assert pulse.quantile_s(0.95) is None
            pulse.answered(number / 10, 0.0)
        assert pulse.quantile_s(0.95) == 1.9
        assert pulse.quantile_s(0.5) == 1.0


class TestCauses:
    @pytest.mark.parametrize(
        ("error", "cause", "outcome"),
        [
            (errors.BadRequest("x"), "rejected", Outcome.GOOD),
            (errors.ContextTooLong("x"), "context", Outcome.GOOD),
            (errors.UpstreamMisconfigured("x"), "misconfigured", Outcome.BAD),
            (errors.UpstreamFailed("x"), "failed", Outcome.BAD),
            (errors.CallTimeout("x"), "timeout", Outcome.BAD),
            (errors.UpstreamLimited("x"), "rate_limit", Outcome.NEUTRAL),
            (errors.Overloaded("x"), "busy", Outcome.NEUTRAL),
            (errors.ModelLoading("x"), "busy", Outcome.NEUTRAL),
            (errors.CircuitOpen("x"), "circuit_open", Outcome.NEUTRAL),
            (errors.CallCancelled("x"), "rejected", Outcome.GOOD),
        ],
        ids=lambda value: type(value).__name__ if isinstance(value, Exception) else str(value),
    )
    def test_each_error_has_one_cause(self, error: ModelportError, cause: str, outcome: Outcome) -> None:
        assert cause_of(error) == cause
        assert outcome_of(cause_of(error)) is outcome

    @pytest.mark.parametrize(
        ("status", "code", "message", "cause"),
        [
            (400, "context_length_exceeded", "", "context"),
            (400, "", "This model's maximum context length is 4096 tokens. However, you requested 9000", "context"),
            (400, "", "prompt is too long: 200001 tokens > 200000 maximum", "context"),
            (400, "content_filter", "", "content_policy"),
            (400, "invalid_value", "temperature is out of range", "rejected"),
            (404, "model_not_found", "The context length of my patience", "rejected"),
        ],
    )
    def test_a_refusal_tells_its_reason_by_code_or_words(
        self, status: int, code: str, message: str, cause: str
    ) -> None:
        error = UpstreamRejected(message, status=status, code=code, type=None, param=None)
        assert cause_of(error) == cause
        assert not may_repeat(cause_of(error))
        assert not may_go_elsewhere(cause_of(error))


class TestItinerary:
    def test_a_refused_request_is_never_tried_again(self) -> None:
        assert walk(itinerary(route(candidate("a"), candidate("b"), failed=("other",))), [Cause.REJECTED]) in (
            ["a"],
            ["b"],
        )

    def test_the_others_come_before_anybody_is_asked_again(self) -> None:
        policy = Policy(strategy="priority", attempts=5)
        trip = itinerary(route(candidate("a"), candidate("b"), policy=policy))
        assert walk(trip, [Cause.FAILED] * 9) == ["a", "b", "a", "b", "a"]

    def test_one_that_can_not_help_is_not_asked_again(self) -> None:
        policy = Policy(strategy="priority", attempts=9)
        trip = itinerary(route(candidate("a"), candidate("b"), policy=policy))
        assert walk(trip, [Cause.MISCONFIGURED, Cause.BUSY, Cause.FAILED]) == ["a", "b"]

    def test_a_local_engine_is_not_asked_again(self) -> None:
        assert len(walk(itinerary(route(candidate("a", local=True))), [Cause.FAILED] * 3)) == 1

    def test_no_attempt_begins_after_the_latest_instant(self) -> None:
        trip = itinerary(route(candidate("a"), candidate("b")), latest_s=10.0)
        leg = trip.first(0.0)
        assert leg is not None
        assert trip.after(leg.candidate, Cause.FAILED, now_s=10.0) is None

    def test_a_rest_that_fits_is_waited_for_and_one_that_does_not_is_not(self) -> None:
        policy = Policy(backoff_first_s=0.0)
        for rest_s, waits in ((7.0, True), (200.0, False)):
            only = candidate("a")
            trip = itinerary(route(only, policy=policy))
            assert trip.first(0.0) is not None
            only.pulse.rests_until_s = rest_s
            leg = trip.after(only, Cause.RATE_LIMIT, now_s=0.0)
            assert (leg is not None and leg.wait_s == rest_s) is waits

    def test_of_two_that_rest_the_one_that_wakes_first_is_asked(self) -> None:
        one, two = candidate("a"), candidate("b")
        trip = itinerary(route(one, two, policy=Policy(strategy="priority", backoff_first_s=0.0)))
        assert trip.first(0.0) is not None
        one.pulse.rests_until_s, two.pulse.rests_until_s = 9.0, 4.0
        leg = trip.after(one, Cause.RATE_LIMIT, now_s=0.0)
        assert leg is not None
        assert leg.candidate is two
        leg = trip.after(two, Cause.RATE_LIMIT, now_s=0.0)
        assert leg == Leg(trip._route, two, 4.0, Cause.RATE_LIMIT)  # type: ignore[union-attr]

    def test_fallbacks_follow_when_the_targets_are_spent(self) -> None:
        others = {name: route(candidate(name)) for name in ("x", "y")}
        others = {name: replace(found, model=name) for name, found in others.items()}
        policy = Policy(attempts=1)
        trip = itinerary(route(candidate("a"), policy=policy, failed=("x", "gone", "y")), others=others)
        assert walk(trip, [Cause.FAILED] * 9) == ["a", "x", "y"]

    @pytest.mark.parametrize(
        ("cause", "asked"),
        [
            (Cause.CONTEXT, ["a", "long"]),
            (Cause.CONTENT_POLICY, ["a"]),
            (Cause.RATE_LIMIT, ["a", "calm"]),
            (Cause.FAILED, ["a", "other"]),
            (Cause.BUSY, ["a", "other"]),
            (Cause.TIMEOUT, ["a", "other"]),
        ],
    )
    def test_each_cause_has_its_own_fallbacks(self, cause: Cause, asked: list[str]) -> None:
        others = {name: replace(route(candidate(name)), model=name) for name in ("long", "calm", "other")}
        origin = route(
            candidate("a"), policy=Policy(attempts=1), failed=("other",), context=("long",), rate_limit=("calm",)
        )
        trip = itinerary(origin, others=others)
        assert walk(trip, [cause]) == asked

    def test_when_every_target_is_left_alone_a_fallback_answers_at_once(self) -> None:
        broken = candidate("a")
        assert broken.pulse.breaker is not None
        broken.pulse.breaker.open(9.0)
        assert itinerary(route(broken)).first(1.0) is None
        trip = itinerary(route(broken, failed=("x",)), others={"x": replace(route(candidate("x")), model="x")})
        leg = trip.first(1.0)
        assert leg is not None
        assert (leg.candidate.pulse.upstream, leg.fallback) == ("x", Cause.CIRCUIT_OPEN)

    @settings(max_examples=200, deadline=None)
    @given(
        targets=st.integers(1, 4),
        attempts=st.integers(1, 10),
        causes=st.lists(st.sampled_from(list(Cause)), min_size=60, max_size=60),
        fallbacks=st.integers(0, 3),
    )
    def test_every_itinerary_ends(self, targets: int, attempts: int, causes: list[Cause], fallbacks: int) -> None:
        policy = Policy(attempts=attempts)
        others = {
            f"m{number}": replace(route(candidate(f"m{number}"), policy=policy), model=f"m{number}")
            for number in range(fallbacks)
        }
        origin = route(*(candidate(f"t{number}") for number in range(targets)), policy=policy, failed=tuple(others))
        asked = walk(itinerary(origin, others=others, latest_s=math.inf), causes)
        assert len(asked) <= min(attempts * (1 + fallbacks), MAX_ATTEMPTS)
        assert all(count <= attempts for count in Counter(name for name in asked if name.startswith("m")).values())


class TestBackoff:
    @settings(max_examples=200, deadline=None)
    @given(
        first_s=st.floats(0, 10), most_s=st.floats(0, 60), repeats=st.integers(1, 10_000), drawn=st.floats(0, 0.999),
        asked_s=st.floats(0, 100),
    )  # fmt: skip
    def test_it_is_jitter_up_to_a_bound_that_doubles_and_never_before_what_was_asked(
        self, first_s: float, most_s: float, repeats: int, drawn: float, asked_s: float
    ) -> None:
        policy = Policy(backoff_first_s=first_s, backoff_most_s=most_s)
        wait_s = backoff_s(policy, repeats, asked_s, lambda: drawn)
        assert asked_s <= wait_s <= asked_s + most_s
        assert wait_s - asked_s <= first_s * 2.0 ** min(repeats - 1, 32) + 1e-9

    def test_nothing_is_as_likely_as_all_of_it(self) -> None:
        policy = Policy(backoff_first_s=1.0, backoff_most_s=4.0)
        draw = random.Random(3).random
        waits = [backoff_s(policy, 3, 0.0, draw) for _ in range(4_000)]
        assert min(waits) < 0.05
        assert max(waits) > 3.95
        assert sum(waits) / len(waits) == pytest.approx(2.0, rel=0.05)


class TestRetryRatio:
    @settings(max_examples=100, deadline=None)
    @given(
        ratio=st.sampled_from([0.0, 0.1, 0.5]), reserve=st.integers(0, 20), steps=st.lists(st.booleans(), max_size=400)
    )
    def test_retries_stay_a_share_of_the_calls(self, ratio: float, reserve: int, steps: list[bool]) -> None:
        budget, calls, retries = RetryRatio(ratio, reserve), 0, 0
        for is_call in steps:
            if is_call:
                budget.deposit()
                calls += 1
            else:
                retries += budget.withdraw(0.0)
        assert retries <= reserve + ratio * calls + 1e-6

    def test_a_few_calls_may_always_be_repeated(self) -> None:
        budget = RetryRatio(0.0, 5)
        assert [budget.withdraw(0.0) for _ in range(6)] == [True] * 5 + [False]
        assert budget.withdraw(1.0)


class TestOverride:
    ROUTE = route(replace(candidate("a"), first_token_s=30.0))
    ALL = frozenset({"strategy", "attempts", "fallback", "hedge", "timeouts"})

    def applied(self, text: str, **policy: Any) -> Policy:
        return apply_override(Policy(overrides=self.ALL, **policy), parse_override(text), self.ROUTE)

    def test_what_is_asked_for_holds(self) -> None:
        found = self.applied("strategy=cheapest, attempts=1, fallback=?0, first_token_s=2.5, total_s=20")
        assert (found.strategy, found.attempts, found.fall_back) == ("cheapest", 1, False)
        assert found.patience == Patience(first_token_s=2.5, total_s=20.0)

    def test_nothing_can_be_asked_upwards(self) -> None:
        found = self.applied(
            "attempts=9, first_token_s=500, total_s=500, fallback, hedge",
            attempts=2,
            fall_back=False,
            patience=Patience(total_s=60.0),
        )
        assert (found.attempts, found.fall_back, found.hedge) == (2, False, None)
        assert found.patience == Patience(first_token_s=30.0, total_s=60.0)

    def test_what_the_operator_keeps_to_himself_is_a_400(self) -> None:
        with pytest.raises(BadRequest, match="strategy"):
            apply_override(Policy(), parse_override("strategy=priority"), self.ROUTE)

    @pytest.mark.parametrize(
        "text",
        ["", "nonsense", "target=b", "strategy=x", "strategy", "attempts=0", "attempts=1.5", "attempts=-1",
         "fallback=maybe", "total_s=nan", "total_s=1e9", "total_s=", "hedge=?2", "attempts=1;x", "a" * 300],
    )  # fmt: skip
    def test_what_can_not_be_read_is_a_400_that_names_the_header(self, text: str) -> None:
        with pytest.raises(BadRequest) as refused:
            parse_override(text)
        assert refused.value.param == "x-modelport-route"


class TestConfiguration:
    def model(self, **row: Any) -> ModelSettings:
        return ModelSettings(id="m", backend="sandbox", **row)

    def test_what_is_not_said_is_left_alone(self) -> None:
        policy = policy_of(self.model())
        assert (policy.patience, policy.hedge, policy.drain_s, policy.budget_s) == (None, None, 0.0, math.inf)
        assert not fallbacks_of(self.model())

    @pytest.mark.parametrize(
        ("row", "drain_s"),
        [({"disconnect": "drain"}, math.inf), ({"disconnect": "drain", "drain_s": 3}, 3.0), ({"drain_s": 3}, 0.0)],
        ids=["to the end", "for a while", "cancel"],
    )
    def test_how_long_a_call_without_a_caller_goes_on(self, row: dict[str, Any], drain_s: float) -> None:
        assert policy_of(self.model(route=row)).drain_s == drain_s

    def test_a_rate_limit_has_its_own_fallbacks_and_then_the_general_ones(self) -> None:
        row = self.model(fallbacks=["b", "c"], route={"fallbacks": {"rate_limit": ["a", "b"]}})
        assert fallbacks_of(row)[Cause.RATE_LIMIT] == ("a", "b", "c")
        assert Cause.CONTEXT not in fallbacks_of(row)


def test_the_words_of_causes_are_one_set() -> None:
    """Answers, receipts and metrics say them, so none is renamed by accident."""
    assert [cause.value for cause in Cause] == [
        "rejected", "context", "content_policy", "rate_limit", "busy", "circuit_open", "misconfigured", "failed",
        "timeout", "hedge",
    ]  # fmt: skip
