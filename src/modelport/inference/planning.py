"""Who will answer a call: its model and version, their route, and the first target to ask."""

from __future__ import annotations

from typing import NamedTuple

from modelport.backends.protocol import Target
from modelport.calls import Call, Operation, Patience, Served
from modelport.catalog.deprecation import Deprecation, Stage
from modelport.catalog.model import Model, Version
from modelport.catalog.rules import check_operation
from modelport.catalog.service import Catalog
from modelport.errors import ModelNotFound
from modelport.experiments.book import ExperimentBook
from modelport.kit.clock import Clock
from modelport.routing.breaker import CLOSED
from modelport.routing.model import Leg, Policy, Route
from modelport.routing.override import apply_override, parse_override
from modelport.routing.plan import Itinerary
from modelport.routing.service import Router
from modelport.settings import LimitsSettings

# Names under which models are asked for, versions and aliases among them: what a platform of 1,000 models needs.
_MOST_PLAIN = 10_000
GENERATES = frozenset({Operation.CHAT, Operation.COMPLETION})
# The backend of a usage event whose answer was not made for its call.
CACHE = "cache"


class Plan(NamedTuple):
    """What will answer a call, as far as it has got: another target or model takes over when an attempt fails.

    `imposes`: whether the target is told the output bound that was reserved. `simple`: an attempt at it needs no wait,
    no rival and no watch. `itinerary` holds the others; None where there is one target, which has not failed.
    `deprecation` is that of the model and version that were asked for, whatever answers in the end.
    """

    model: Model
    target: Target
    served: Served
    leg: Leg
    policy: Policy
    imposes: bool
    simple: bool
    itinerary: Itinerary | None = None
    deprecation: Deprecation | None = None

    @property
    def priced_models(self) -> tuple[str, ...]:
        """Every model whose price may be charged for the answer; a budget reserves for the dearest."""
        origin = self.leg.route if self.itinerary is None else self.itinerary.origin
        fallbacks = origin.all_fallbacks if self.policy.fall_back else ()
        return (self.served.model, *fallbacks)


class Planner:
    """One per process. A call that asks for nothing special to a model with one target shares a plan made before."""

    def __init__(
        self, catalog: Catalog, router: Router, experiments: ExperimentBook, *, clock: Clock, limits: LimitsSettings
    ) -> None:
        self._catalog = catalog
        self._router = router
        self._experiments = experiments
        self._clock = clock
        self._limits = limits
        # By the names that callers use for them, of models without an experiment; made anew when the catalogue or what
        # experiments run has changed.
        self._plain: dict[str, Plan] = {}
        catalog.on_swap(self._plain.clear)
        experiments.on_change(self._plain.clear)

    def plan(self, call: Call) -> Plan:
        """Which target is asked first; the call is told how patient its route is.

        Raises: ModelNotFound, Gone, BadRequest, CircuitOpen.
        """
        plain = self._plain.get(call.model)
        if plain is None or not _is_plain(call):
            return self._choose(call)
        breaker = plain.leg.candidate.pulse.breaker
        if breaker is not None and breaker.state is not CLOSED:
            return self._choose(call)
        self._check(call, plain.model)
        if plain.deprecation is not None:
            plain.deprecation.check(self._clock.now_us())
        self._router.ratio.deposit()
        return plain

    def resolve(self, call: Call) -> tuple[Model, Version]:
        """Which model and version the call asks for, or gets as its variant of an experiment.

        Raises: ModelNotFound, Gone, BadRequest.
        """
        named = call.version or _pinned(call)
        model, version = self._catalog.get(call.model, version=named)
        self._check(call, model)
        if named is None and call.model in self._experiments.running:
            variant = self._variant(call)
            if variant is not None:
                return variant
        if version.deprecation is not None:
            version.deprecation.check(self._clock.now_us())
        return model, version

    def unasked(self, call: Call, model: Model, version: Version) -> Plan:
        """The plan of a call whose answer is there: nobody is asked, whatever state the route's targets are in."""
        route = self._router.route(model.id, version.id, mode=call.caller.mode)
        plan = self._plan(Leg(route, route.candidates[0]), route.policy, None, version.deprecation)
        return plan._replace(served=plan.served._replace(backend=CACHE))

    def _choose(self, call: Call) -> Plan:
        """The plan of a call with a choice of targets, with wishes of its own, or whose target is not well."""
        model, version = self.resolve(call)
        route = self._router.route(model.id, version.id, mode=call.caller.mode)
        policy = apply_override(route.policy, parse_override(call.route), route) if call.route else route.policy
        if policy.patience is not None:
            _be_patient(call, policy.patience)
        itinerary = self.itinerary(call, route, policy)
        leg = itinerary.first(self._clock.monotonic_s())
        if leg is None:
            raise self._router.refusal(candidate.pulse for candidate in route.candidates)
        self._router.ratio.deposit()
        plan = self._plan(leg, policy, itinerary, version.deprecation)
        if plan.simple and len(route.candidates) == 1 and _is_plain(call) and self._may_share(call.model):
            self._plain[call.model] = plan._replace(itinerary=None)
        return plan

    def _may_share(self, name: str) -> bool:
        """False also where this call is in no experiment, while another to the same model may be."""
        return name not in self._experiments.running and len(self._plain) < _MOST_PLAIN

    def _variant(self, call: Call) -> tuple[Model, Version] | None:
        """What the call gets in an experiment, which is noted on it; None where it is in none, also because that can't
        answer it or is closed to its key."""
        found = self._experiments.assign(call)
        if found is None:
            return None
        experiment, variant = found
        model = self._catalog.models.get(variant.model)
        if model is None or call.operation not in model.operations or not call.caller.may_use(model.id):
            return None
        wanted = variant.version or "latest"
        version = model.versions.get(model.aliases.get(wanted, wanted))
        if version is None or self._is_gone(version):
            return None
        call.experiment = experiment.arm(variant)
        return model, version

    def _is_gone(self, version: Version) -> bool:
        ends = version.deprecation
        return ends is not None and ends.stage(self._clock.now_us()) is Stage.GONE

    def _check(self, call: Call, model: Model) -> None:
        """Raises: ModelNotFound for a key that may not use it, BadRequest for what it can't do."""
        models = call.caller.models
        if models is not None and model.id not in models:
            raise ModelNotFound(f"The model {call.model!r} does not exist or is not open to this key.", param="model")
        check_operation(model, call.operation)

    def replan(self, plan: Plan, leg: Leg) -> Plan:
        """The plan with `leg` in the place of what was to answer."""
        return self._plan(leg, plan.policy, plan.itinerary, plan.deprecation)

    def _plan(self, leg: Leg, policy: Policy, itinerary: Itinerary | None, deprecation: Deprecation | None) -> Plan:
        model, target = self._catalog.known(leg.route.model), leg.candidate.target
        served = Served(model.id, leg.route.version, target.backend.kind, target.upstream_model)
        # An upstream keeps its own default: only a bound that the operator configured is imposed on it.
        imposes = not model.settings.targets or model.settings.max_output_tokens is not None
        simple = policy.hedge is None and policy.patience is None and leg.fallback is None and not leg.wait_s
        return Plan(model, target, served, leg, policy, imposes, simple, itinerary, deprecation)

    def itinerary(self, call: Call, route: Route, policy: Policy) -> Itinerary:
        """Every attempt that may be made for the call."""
        latest_s = min(call.deadline_s, call.started_s + policy.budget_s)
        return self._router.itinerary(route, policy, latest_s=latest_s, find=lambda name: self._find(call, name))

    def _find(self, call: Call, name: str) -> Route | None:
        """The route of a fallback model, if it can answer this call and this key may use it."""
        model = self._catalog.models.get(name)
        if model is None or call.operation not in model.operations or not call.caller.may_use(name):
            return None
        latest = model.aliases["latest"]
        if self._is_gone(model.versions[latest]):
            return None
        return self._router.route(name, latest, mode=call.caller.mode)

    def output_bound(self, call: Call, model: Model, input_tokens: int) -> int | None:
        """The most output tokens one choice can have; None where the operation has none."""
        if call.operation not in GENERATES:
            return None
        asked: int | None = call.request.output_bound
        bound = asked or model.settings.max_output_tokens or self._limits.default_output_tokens
        context = model.settings.context_tokens
        return bound if context is None else max(min(bound, context - input_tokens), 1)

    def bound_of(self, route: Route, call: Call, *, most: int | None) -> int | None:
        """The same for a model that takes over; what was reserved stays the most."""
        own = self.output_bound(call, self._catalog.known(route.model), 0)
        return most if own is None or most is None else min(own, most)


def _is_plain(call: Call) -> bool:
    """Whether the call asks for nothing but a model."""
    caller = call.caller
    return call.version is None and not call.route and caller.mode == "live" and caller.model_versions is None


def _pinned(call: Call) -> str | None:
    """The version that the caller's key means by the model's bare name."""
    pins = call.caller.model_versions
    return None if pins is None else pins.get(call.model)


def _be_patient(call: Call, patience: Patience) -> None:
    call.patience = patience
    if patience.total_s is not None:
        call.deadline_s = min(call.deadline_s, call.started_s + patience.total_s)
