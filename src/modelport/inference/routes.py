"""The routes of all models, out of the catalogue and the settings."""

from __future__ import annotations

from modelport.backends.protocol import Target
from modelport.backends.sandbox import SandboxBackend
from modelport.catalog.model import Model, Version
from modelport.catalog.service import Catalog
from modelport.kit.clock import Clock
from modelport.metering.prices import listed_rates
from modelport.observe.metrics import Metrics
from modelport.routing.breaker import Breaker
from modelport.routing.configured import comparable_nanos, fallbacks_of, policy_of, rules_of
from modelport.routing.model import Candidate, Route
from modelport.routing.service import Router
from modelport.routing.stats import Pulse
from modelport.settings import Settings, TargetSettings, UpstreamSettings
from modelport.state.protocol import State


def build_router(settings: Settings, catalog: Catalog, state: State, *, clock: Clock, metrics: Metrics) -> Router:
    """The router of every version of every model, not started.

    A test key never spends an upstream's money: the sandbox plays its part, in the model's name.
    """
    routes = _Routes(_Candidates(settings))
    made, played = routes.of(catalog)
    router = Router(made, state, played=played, clock=clock, metrics=metrics, settings=settings.routing)

    def follow() -> None:
        made, played = routes.of(catalog)
        router.replace(made, played=played)

    catalog.on_swap(follow)
    return router


class _Routes:
    """Makes the routes of a catalogue; versions that it had before keep theirs, with all that is known of it."""

    def __init__(self, candidates: _Candidates) -> None:
        self._candidates = candidates
        self._known: dict[tuple[str, str], tuple[tuple[Target, ...], Route]] = {}
        sandbox = Target(SandboxBackend(), "sandbox")
        self._played_by = (Candidate(sandbox, Pulse("", sandbox.upstream_model, None)),)

    def of(self, catalog: Catalog) -> tuple[list[Route], list[Route]]:
        """The routes of every version, and those of the models that the sandbox plays for test keys."""
        known, played = self._known, []
        self._known = {}
        for model in catalog.models.values():
            policy, fallbacks = policy_of(model.settings), fallbacks_of(model.settings)
            for version in model.versions.values():
                name = (model.id, version.id)
                targets, route = known.get(name, ((), None))
                if route is None or targets is not version.targets:
                    route = Route(*name, self._candidates.of(model, version), policy, fallbacks)
                self._known[name] = version.targets, route
                if model.settings.targets:
                    played.append(Route(*name, self._played_by, policy, fallbacks))
        return [route for _, route in self._known.values()], played


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
