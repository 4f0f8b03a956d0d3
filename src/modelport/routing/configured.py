"""The settings' rows in routing's own terms."""

from __future__ import annotations

import math
from collections.abc import Mapping
from types import MappingProxyType

from modelport.calls import Patience
from modelport.kit.money import parse_usd
from modelport.routing.breaker import BreakerRules
from modelport.routing.model import Cause, Hedge, Policy
from modelport.settings import BreakerSettings, ModelSettings, PriceSettings

# Tokens of input for each of output, to compare prices by one number: about what chat traffic has.
_INPUT_SHARE = 3


def policy_of(row: ModelSettings) -> Policy:
    """How the calls of a model are made."""
    route, retry = row.route, row.route.retry
    hedge = None if route.hedge is None else Hedge(route.hedge.quantile, route.hedge.after_s)
    patience = Patience(**route.timeouts.model_dump())
    return Policy(
        strategy=route.strategy,
        attempts=retry.attempts,
        budget_s=math.inf if retry.budget_s is None else retry.budget_s,
        backoff_first_s=retry.backoff_first_s,
        backoff_most_s=retry.backoff_most_s,
        patience=None if patience == Patience() else patience,
        hedge=hedge,
        drain_s=0.0 if route.disconnect == "cancel" else math.inf if route.drain_s is None else route.drain_s,
        overrides=frozenset(route.overrides),
    )


def fallbacks_of(row: ModelSettings) -> Mapping[Cause, tuple[str, ...]]:
    """The models to ask by cause. After a rate limit, those for it and then the general ones."""
    special = row.route.fallbacks
    found = {
        Cause.CONTEXT: tuple(special.context),
        Cause.CONTENT_POLICY: tuple(special.content_policy),
        Cause.RATE_LIMIT: tuple(dict.fromkeys([*special.rate_limit, *row.fallbacks])),
        Cause.FAILED: tuple(row.fallbacks),
    }
    return MappingProxyType({cause: models for cause, models in found.items() if models})


def rules_of(row: BreakerSettings) -> BreakerRules | None:
    """When a target of the upstream is left alone; None where it never is."""
    return BreakerRules(**row.model_dump(exclude={"enabled"})) if row.enabled else None


def comparable_nanos(prices: PriceSettings) -> int:
    """A price as one number, for the strategy `cheapest`: of tokens, or of requests where tokens cost nothing."""
    tokens = _INPUT_SHARE * parse_usd(prices.input_usd_per_mtok) + parse_usd(prices.output_usd_per_mtok)
    return tokens or parse_usd(prices.usd_per_request)
