"""What routing knows of a model: its targets, and how calls to it are to be made. Frozen but for what is live."""

from __future__ import annotations

import enum
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import NamedTuple

from modelport.backends.protocol import Target
from modelport.calls import Patience
from modelport.routing.stats import Pulse
from modelport.settings import Strategy


class Cause(enum.StrEnum):
    """Why an attempt failed, as far as that decides what comes next. The words are what answers and receipts say."""

    # The request itself is at fault, so every repetition fails as well.
    REJECTED = "rejected"
    CONTEXT = "context"
    CONTENT_POLICY = "content_policy"
    # The target is at fault, or busy; another one may answer.
    RATE_LIMIT = "rate_limit"
    BUSY = "busy"
    CIRCUIT_OPEN = "circuit_open"
    MISCONFIGURED = "misconfigured"
    FAILED = "failed"
    TIMEOUT = "timeout"
    # A second attempt that was begun because the first was slow; nothing failed.
    HEDGE = "hedge"


@dataclass(frozen=True, slots=True)
class Hedge:
    """When to ask a second target as well: after `after_s`, or after the time that `quantile` of answers begin in."""

    quantile: float | None = None
    after_s: float | None = None


@dataclass(frozen=True, slots=True)
class Policy:
    """How the calls of a route are made.

    `attempts` counts those at one model; each fallback model has as many of its own. No attempt begins later than
    `budget_s` after the call's arrival. `drain_s`: how long an answer is read on after its caller hung up; 0 stops
    the engine at once. `overrides` names what callers may change, and only downwards.
    """

    strategy: Strategy = "weighted"
    attempts: int = 3
    budget_s: float = math.inf
    backoff_first_s: float = 0.1
    backoff_most_s: float = 2.0
    patience: Patience | None = None
    hedge: Hedge | None = None
    drain_s: float = 0.0
    fall_back: bool = True
    overrides: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Candidate:
    """A target of a route, with what is known of it.

    `price_nanos` is what tokens of it cost the operator, to compare with others'; `first_token_s` its upstream's own
    patience.
    """

    target: Target
    pulse: Pulse
    price_nanos: int = 0
    first_token_s: float | None = None


@dataclass(frozen=True, slots=True)
class Route:
    """One version of one model: who can answer for it, and which models when nobody can.

    `fallbacks` are model ids by cause; those under `FAILED` are for every cause that lies with the target and has
    none of its own.
    """

    model: str
    version: str
    candidates: tuple[Candidate, ...]
    policy: Policy = Policy()
    fallbacks: Mapping[Cause, tuple[str, ...]] = field(default_factory=lambda: MappingProxyType({}))

    # Whether there is anybody else to ask; looked at by every call, so it is worked out once.
    has_choice: bool = field(init=False)
    # Every model that may be asked, whatever the cause.
    all_fallbacks: tuple[str, ...] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "has_choice", len(self.candidates) > 1 or bool(self.fallbacks))
        every = dict.fromkeys(model for models in self.fallbacks.values() for model in models)
        object.__setattr__(self, "all_fallbacks", tuple(every))

    def fallbacks_for(self, cause: Cause) -> tuple[str, ...]:
        """The models to ask after `cause`. A refusal of the request itself has only those named for it."""
        found = self.fallbacks.get(cause)
        if found is None and cause not in (Cause.REJECTED, Cause.CONTEXT, Cause.CONTENT_POLICY):
            found = self.fallbacks.get(Cause.FAILED)
        return found or ()


class Leg(NamedTuple):
    """One attempt to make, after a wait. `why` is what the attempt before it failed of; `fallback` why another model
    than the one that was asked for is to answer, None while it is the same."""

    route: Route
    candidate: Candidate
    wait_s: float = 0.0
    why: Cause | None = None
    fallback: Cause | None = None
