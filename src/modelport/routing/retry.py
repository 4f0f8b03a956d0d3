"""What may be tried again, when, and how often in all. Pure.

Repeating is safe as long as the caller has not seen a byte: an inference changes nothing, and only the attempt that
answers is charged. It is useless where the request itself was refused, and harmful where everybody does it at once;
against that stand full jitter and `RetryRatio`.

Sources: M. Brooker, Exponential Backoff And Jitter (full jitter); Finagle's retry budgets (a share of the calls).
"""

from __future__ import annotations

import re

from modelport.errors import (
    CallTimeout,
    CircuitOpen,
    ContextTooLong,
    Internal,
    LimitExceeded,
    ModelportError,
    Unavailable,
    UpstreamFailed,
    UpstreamLimited,
    UpstreamMisconfigured,
    UpstreamRejected,
)
from modelport.routing.breaker import Outcome
from modelport.routing.model import Cause, Policy
from modelport.routing.split import Draw

_CONTENT_CODES = frozenset(
    {"content_filter", "content_policy", "content_policy_violation", "ResponsibleAIPolicyViolation"}
)
# Servers without a code of their own for it say it in one of these ways: vLLM, SGLang, llama.cpp, Anthropic.
_CONTEXT_WORDS = re.compile(
    r"context (?:length|window|size)|maximum context|prompt is too long|longer than the model", re.IGNORECASE
)
# What is allowed whatever the traffic: with few calls a share of them is nothing, and a storm can't be.
_RETRIES_PER_S = 1.0

# Another target may do better. The same one may, after a while, except in the last three cases.
_REPEATABLE = frozenset({Cause.FAILED, Cause.TIMEOUT, Cause.RATE_LIMIT})
_ELSEWHERE = _REPEATABLE | {Cause.BUSY, Cause.CIRCUIT_OPEN, Cause.MISCONFIGURED}
_BAD = frozenset({Cause.FAILED, Cause.TIMEOUT, Cause.MISCONFIGURED})
_NEUTRAL = frozenset({Cause.RATE_LIMIT, Cause.BUSY, Cause.CIRCUIT_OPEN, Cause.HEDGE})


def cause_of(error: ModelportError) -> Cause:
    """Why an attempt failed. Whatever is not known to lie with the target is REJECTED, and so not tried again."""
    match error:
        case ContextTooLong():
            return Cause.CONTEXT
        case UpstreamRejected():
            return _cause_of_rejection(error)
        case UpstreamMisconfigured():
            return Cause.MISCONFIGURED
        case UpstreamFailed() | Internal():
            return Cause.FAILED
        case CallTimeout():
            return Cause.TIMEOUT
        case UpstreamLimited() | LimitExceeded():
            return Cause.RATE_LIMIT
        case CircuitOpen():
            return Cause.CIRCUIT_OPEN
        case Unavailable():
            return Cause.BUSY
    return Cause.REJECTED


def _cause_of_rejection(error: UpstreamRejected) -> Cause:
    if error.code in _CONTENT_CODES:
        return Cause.CONTENT_POLICY
    if error.code == ContextTooLong.code or (error.status in (400, 413) and _CONTEXT_WORDS.search(error.message)):
        return Cause.CONTEXT
    return Cause.REJECTED


def outcome_of(cause: Cause) -> Outcome:
    """What a failure says about its target. One that refused a request is in good health."""
    if cause in _BAD:
        return Outcome.BAD
    return Outcome.NEUTRAL if cause in _NEUTRAL else Outcome.GOOD


def may_go_elsewhere(cause: Cause) -> bool:
    """Whether another target may answer the same request."""
    return cause in _ELSEWHERE


def may_repeat(cause: Cause) -> bool:
    """Whether the same target may answer the same request a little later."""
    return cause in _REPEATABLE


def backoff_s(policy: Policy, repeats: int, retry_after_s: float, draw: Draw) -> float:
    """How long to wait before a target is asked again for the `repeats`th time (from 1).

    Anything up to a bound that doubles each time. A target that named an instant is not asked before it.
    """
    most_s = min(policy.backoff_first_s * 2.0 ** min(repeats - 1, 32), policy.backoff_most_s)
    return retry_after_s + draw() * most_s


class RetryRatio:
    """Lets repeated attempts through as long as they are a small share of all calls of this process.

    It bounds those at a target that has just failed, and second attempts for speed. Moving on to another target is
    not counted: breakers bound that, and an outage of one of two must not leave half of the calls unanswered.
    """

    __slots__ = ("_filled_s", "_ratio", "_reserve", "_tokens")

    def __init__(self, ratio: float, reserve: float) -> None:
        self._ratio = ratio
        self._reserve = reserve
        self._tokens = reserve
        self._filled_s = 0.0

    def deposit(self) -> None:
        """A call began."""
        tokens = self._tokens + self._ratio
        self._tokens = tokens if tokens < self._reserve else self._reserve

    def withdraw(self, now_s: float) -> bool:
        """Whether one more attempt may be made now; it is counted then."""
        earned = max(now_s - self._filled_s, 0.0) * _RETRIES_PER_S
        self._filled_s = now_s
        self._tokens = min(self._tokens + earned, self._reserve)
        if self._tokens < 1.0:
            return False
        self._tokens -= 1.0
        return True
