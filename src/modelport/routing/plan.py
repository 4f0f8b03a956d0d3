"""From a route to ordered attempts. Pure: live facts, an instant and random draws in; who is asked next out."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from modelport.routing.breaker import CLOSED, Gate
from modelport.routing.model import Candidate, Cause, Leg, Policy, Route
from modelport.routing.retry import RetryRatio, backoff_s, may_go_elsewhere, may_repeat
from modelport.routing.split import Draw, weighted_order

# Attempts of one call, over all targets and fallbacks: what a receipt and a journal's record have room for.
MAX_ATTEMPTS = 16


def order(route: Route, policy: Policy, *, now_s: float, draw: Draw) -> list[Candidate]:
    """The candidates in the order in which to ask them; those behind an open breaker are left out.

    The strategy decides, but that those which asked for a rest come last.
    """
    candidates = [candidate for candidate in route.candidates if not is_shut(candidate, now_s)]
    if len(candidates) < 2:
        return candidates
    ordered = _by_strategy(candidates, policy, now_s, draw)
    for candidate in candidates:
        if candidate.pulse.rests_until_s > now_s:
            return sorted(ordered, key=lambda candidate: candidate.pulse.rests_until_s > now_s)
    return ordered


def _by_strategy(candidates: Sequence[Candidate], policy: Policy, now_s: float, draw: Draw) -> list[Candidate]:
    if policy.strategy == "priority":
        return list(candidates)
    # Ties are broken as the weights say, by a sort that keeps the order of what is equal.
    drawn = [candidates[index] for index in weighted_order([candidate.target.weight for candidate in candidates], draw)]
    if policy.strategy == "least_outstanding":
        return sorted(drawn, key=lambda candidate: candidate.pulse.outstanding / max(candidate.target.weight, 1))
    if policy.strategy == "cheapest":
        return sorted(drawn, key=lambda candidate: candidate.price_nanos)
    if policy.strategy == "lowest_latency":
        return sorted(drawn, key=lambda candidate: _expected_s(candidate, now_s))
    return drawn


def _expected_s(candidate: Candidate, now_s: float) -> float:
    """How long an answer will probably take to begin: its latency, once for each call before it.

    A target of which nothing was heard lately is tried, by one call at a time.
    Source: Finagle's peak EWMA load balancer.
    """
    pulse = candidate.pulse
    latency_s = pulse.latency_s(now_s)
    if latency_s is None:
        return 0.0 if not pulse.outstanding else float("inf")
    return latency_s * (pulse.outstanding + 1)


def is_shut(candidate: Candidate, now_s: float) -> bool:
    """Whether its breaker turns calls away now."""
    breaker = candidate.pulse.breaker
    return breaker is not None and breaker.state is not CLOSED and breaker.gate(now_s) is Gate.SHUT


class Itinerary:
    """The attempts of one call, each found when the one before it has failed.

    The targets of the model in their order, then the same ones again while repeating makes sense, then the fallback
    models, each with its own targets, order and number of attempts.
    """

    __slots__ = (
        "_attempts",
        "_draw",
        "_fallback",
        "_find",
        "_latest_s",
        "_left",
        "_policy",
        "_ratio",
        "_repeats",
        "_route",
        "_spent",
        "_total",
        "_tried",
        "_visited",
        "origin",
    )

    def __init__(
        self,
        route: Route,
        policy: Policy,
        *,
        latest_s: float,
        ratio: RetryRatio,
        find: Callable[[str], Route | None],
        draw: Draw,
    ) -> None:
        """No attempt begins after `latest_s`. `find` gives the route of a fallback model, if this call may use it."""
        self.origin = self._route = route
        self._policy = policy
        self._attempts = policy.attempts
        self._latest_s = latest_s
        self._ratio = ratio
        self._find = find
        self._draw = draw
        self._visited = {route.model}
        self._fallback: Cause | None = None
        self._total = self._spent = self._repeats = 0
        # Targets of this model that were not asked yet, and those that were and may be asked again.
        self._left: list[Candidate] = []
        self._tried: list[Candidate] = []

    def first(self, now_s: float) -> Leg | None:
        """The first attempt; None when every target, of fallbacks too, is behind an open breaker."""
        self._left = order(self._route, self._policy, now_s=now_s, draw=self._draw)
        return self._untried(now_s, None) or self._next_model(Cause.CIRCUIT_OPEN, now_s)

    def begun(self, candidate: Candidate) -> None:
        """`candidate` is tried without having been asked for here: the only one of its route, or a second one for
        speed."""
        self._spent += 1
        self._total += 1
        if candidate in self._left:
            self._left.remove(candidate)

    def second(self, first: Candidate, now_s: float) -> Candidate | None:
        """Who is asked beside `first`, which is slow: who would be next, else the same once more; None where no
        further attempt may be made."""
        if self._spent >= self._attempts or self._total >= MAX_ATTEMPTS or now_s >= self._latest_s:
            return None
        return next((candidate for candidate in self._left if not is_shut(candidate, now_s)), first)

    def after(self, candidate: Candidate, cause: Cause, *, now_s: float) -> Leg | None:
        """What to try after `candidate` failed because of `cause`; None when the failure is the call's."""
        if now_s >= self._latest_s or self._total >= MAX_ATTEMPTS:
            return None
        if may_go_elsewhere(cause):
            # A local engine that failed is not asked again: nothing lies between it and us that could have failed.
            if may_repeat(cause) and candidate.pulse.upstream:
                self._tried.append(candidate)
            leg = self._untried(now_s, cause) or self._repeat(cause, now_s)
            if leg is not None:
                return leg
        return self._next_model(cause, now_s)

    def _untried(self, now_s: float, why: Cause | None) -> Leg | None:
        if self._spent >= self._attempts:
            return None
        while self._left:
            candidate = self._left.pop(0)
            if not is_shut(candidate, now_s):
                return self._leg(candidate, 0.0, why)
        return None

    def _repeat(self, why: Cause, now_s: float) -> Leg | None:
        """One of those that failed, again: the one that may be asked first, or was."""
        candidates = [candidate for candidate in self._tried if not is_shut(candidate, now_s)]
        if not candidates or self._spent >= self._attempts:
            return None
        candidate = min(candidates, key=lambda candidate: max(candidate.pulse.rests_until_s, now_s))
        self._repeats += 1
        asked_s = max(candidate.pulse.rests_until_s - now_s, 0.0)
        wait_s = backoff_s(self._policy, self._repeats, asked_s, self._draw)
        if now_s + wait_s >= self._latest_s or not self._ratio.withdraw(now_s):
            return None
        self._tried.remove(candidate)
        return self._leg(candidate, wait_s, why)

    def _next_model(self, why: Cause, now_s: float) -> Leg | None:
        """The first target of the next fallback model for `why`. Fallbacks of fallbacks are not followed."""
        if not self._policy.fall_back:
            return None
        for model in self.origin.fallbacks_for(why):
            route = None if model in self._visited else self._find(model)
            self._visited.add(model)
            if route is None:
                continue
            self._route, self._fallback = route, why
            self._attempts = min(route.policy.attempts, self._policy.attempts)
            self._spent = self._repeats = 0
            self._tried = []
            self._left = order(route, route.policy, now_s=now_s, draw=self._draw)
            leg = self._untried(now_s, why)
            if leg is not None:
                return leg
        return None

    def _leg(self, candidate: Candidate, wait_s: float, why: Cause | None) -> Leg:
        self._spent += 1
        self._total += 1
        return Leg(self._route, candidate, wait_s, why, self._fallback)
