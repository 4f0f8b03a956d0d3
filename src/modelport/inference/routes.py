"""The routes of all models, out of the catalogue and the settings."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from modelport.backends.protocol import Target
from modelport.catalog.model import Model, Version
from modelport.metering.prices import listed_rates
from modelport.routing.breaker import Breaker
from modelport.routing.configured import comparable_nanos, fallbacks_of, policy_of, rules_of
from modelport.routing.model import Candidate, Route
from modelport.routing.stats import Pulse
from modelport.settings import Settings, TargetSettings, UpstreamSettings


class Routes(NamedTuple):
    """Every version's route, and those that test keys take instead."""

    live: list[Route]
    played: list[Route]


def build_routes(settings: Settings, models: Iterable[Model], *, sandbox: Target) -> Routes:
    """A test key never spends an upstream's money: the sandbox plays its part, in the model's name."""
    makers = _Candidates(settings)
    routes = Routes([], [])
    for model in models:
        policy, fallbacks = policy_of(model.settings), fallbacks_of(model.settings)
        for version in model.versions.values():
            routes.live.append(Route(model.id, version.id, makers.of(model, version), policy, fallbacks))
            if model.settings.targets:
                played = (Candidate(sandbox, Pulse("", sandbox.upstream_model, None)),)
                routes.played.append(Route(model.id, version.id, played, policy, fallbacks))
    return routes


class _Candidates:
    """Makes candidates; models that share a target share what is known of it."""

    def __init__(self, settings: Settings) -> None:
        self._upstreams = {row.name: row for row in settings.upstreams}
        self._pulses: dict[tuple[str, str], Pulse] = {}

    def of(self, model: Model, version: Version) -> tuple[Candidate, ...]:
        if not model.settings.targets:
            return tuple(Candidate(target, Pulse("", target.upstream_model, None)) for target in version.targets)
        rows = zip(version.targets, model.settings.targets, strict=True)
        return tuple(self._upstream_candidate(target, row) for target, row in rows)

    def _upstream_candidate(self, target: Target, row: TargetSettings) -> Candidate:
        upstream = self._upstreams[target.upstream]
        key = (target.upstream, target.upstream_model)
        pulse = self._pulses.get(key)
        if pulse is None:
            rules = rules_of(upstream.breaker)
            pulse = self._pulses[key] = Pulse(*key, None if rules is None else Breaker(rules))
        return Candidate(target, pulse, _price_nanos(target, row, upstream), upstream.first_token_timeout_s)


def _price_nanos(target: Target, row: TargetSettings, upstream: UpstreamSettings) -> int:
    prices = row.prices or listed_rates(upstream.base_url, target.upstream_model)
    return 0 if prices is None else comparable_nanos(prices)
