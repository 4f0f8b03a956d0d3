"""Who will answer a call: its model and version, their route, and the first target to ask."""

from __future__ import annotations

from typing import NamedTuple

from modelport.backends.protocol import Target
from modelport.calls import Call, Operation, Patience, Served
from modelport.catalog.model import Model
from modelport.catalog.rules import check_operation
from modelport.catalog.service import Catalog
from modelport.errors import ModelNotFound
from modelport.kit.clock import Clock
from modelport.routing.breaker import BreakerState
from modelport.routing.model import Leg, Policy, Route
from modelport.routing.override import apply_override, parse_override
from modelport.routing.plan import Itinerary
from modelport.routing.service import Router
from modelport.settings import LimitsSettings

GENERATES = frozenset({Operation.CHAT, Operation.COMPLETION})


class Plan(NamedTuple):
    """What will answer a call, as far as it has got: another target or model takes over when an attempt fails.

    `itinerary` holds the others; None where there is one target, which has not failed.
    """

    model: Model
    target: Target
    served: Served
    leg: Leg
    policy: Policy
    itinerary: Itinerary | None = None


class Planner:
    """One per process. A call that asks for nothing special to a model with one target shares a plan made before."""

    def __init__(self, catalog: Catalog, router: Router, *, clock: Clock, limits: LimitsSettings) -> None:
        self._catalog = catalog
        self._router = router
        self._clock = clock
        self._limits = limits
        # By the identity of their routes, which live as long as the process.
        self._plain: dict[int, Plan] = {}

    def plan(self, call: Call) -> Plan:
        """Which target is asked first; the call is told how patient its route is.

        Raises: ModelNotFound, BadRequest, CircuitOpen.
        """
        model, version = self._catalog.get(call.model, version=call.version)
        if not call.caller.may_use(model.id):
            raise ModelNotFound(f"The model {call.model!r} does not exist or is not open to this key.", param="model")
        check_operation(model, call.operation)
        route = self._router.route(model.id, version.id, mode=call.caller.mode)
        if not call.route and len(route.candidates) == 1:
            breaker = route.candidates[0].pulse.breaker
            if breaker is None or breaker.state is BreakerState.CLOSED:
                self._router.ratio.deposit()
                if route.policy.patience is not None:
                    _be_patient(call, route.policy.patience)
                plain = self._plain.get(id(route))
                if plain is None:
                    leg = Leg(route, route.candidates[0])
                    plain = self._plain[id(route)] = self._plan(model, leg, route.policy)
                return plain
        return self._chosen(call, model, route)

    def _chosen(self, call: Call, model: Model, route: Route) -> Plan:
        """The plan of a call with a choice of targets, with wishes of its own, or whose target is not well."""
        policy = apply_override(route.policy, parse_override(call.route), route) if call.route else route.policy
        if policy.patience is not None:
            _be_patient(call, policy.patience)
        itinerary = self.itinerary(call, route, policy)
        leg = itinerary.first(self._clock.monotonic_s())
        if leg is None:
            raise self._router.refusal(candidate.pulse for candidate in route.candidates)
        self._router.ratio.deposit()
        return self._plan(
            model if leg.route is route else self._catalog.models[leg.route.model], leg, policy, itinerary
        )

    def replan(self, plan: Plan, leg: Leg) -> Plan:
        """The plan with `leg` in the place of what was to answer."""
        return self._plan(self._catalog.models[leg.route.model], leg, plan.policy, plan.itinerary)

    def _plan(self, model: Model, leg: Leg, policy: Policy, itinerary: Itinerary | None = None) -> Plan:
        target = leg.candidate.target
        served = Served(model.id, leg.route.version, target.backend.kind, target.upstream_model)
        return Plan(model, target, served, leg, policy, itinerary)

    def itinerary(self, call: Call, route: Route, policy: Policy) -> Itinerary:
        """Every attempt that may be made for the call."""
        latest_s = min(call.deadline_s, call.started_s + policy.budget_s)
        return self._router.itinerary(route, policy, latest_s=latest_s, find=lambda name: self._find(call, name))

    def _find(self, call: Call, name: str) -> Route | None:
        """The route of a fallback model, if it can answer this call and this key may use it."""
        model = self._catalog.models.get(name)
        if model is None or call.operation not in model.operations or not call.caller.may_use(name):
            return None
        return self._router.route(name, model.aliases["latest"], mode=call.caller.mode)

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
        own = self.output_bound(call, self._catalog.models[route.model], 0)
        return most if own is None or most is None else min(own, most)

    def imposed(self, route: Route, bound: int | None) -> int | None:
        """The bound that the target is told: an upstream keeps its own default unless the operator configured one."""
        settings = self._catalog.models[route.model].settings
        return bound if not settings.targets or settings.max_output_tokens else None


def _be_patient(call: Call, patience: Patience) -> None:
    call.patience = patience
    if patience.total_s is not None:
        call.deadline_s = min(call.deadline_s, call.started_s + patience.total_s)
