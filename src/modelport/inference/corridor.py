"""admit → plan → replay → run → settle: the one path of every inference call.

Everything streams: a door that answers with JSON collects the stream. Here a call is let in; `inference/run.py` has
what becomes of it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Coroutine
from dataclasses import replace
from typing import Any

from modelport.budgets.quote import Quote
from modelport.calls import Call
from modelport.catalog.model import Model, Version
from modelport.catalog.service import Catalog
from modelport.errors import ModelportError
from modelport.experiments.book import ExperimentBook
from modelport.inference.admission import Admission
from modelport.inference.attempts import Attempts, Dispatcher
from modelport.inference.cashier import PaidReservation
from modelport.inference.ceiling import shorten
from modelport.inference.interrupt import Deadlines, Interrupt, PatientInterrupt
from modelport.inference.planning import Plan, Planner
from modelport.inference.quoting import choices, quote
from modelport.inference.run import Run
from modelport.kit.clock import Clock
from modelport.metering.ledger import Ledger
from modelport.metering.prices import PriceBook
from modelport.observe.metrics import Metrics
from modelport.replay.cache.service import ResponseCache
from modelport.replay.cache.ticket import Bypass, Ticket
from modelport.routing.model import Policy
from modelport.routing.service import Router
from modelport.settings import LimitsSettings

SCOPE = "inference"
_SHARED_DEADLINES = 64


class Corridor:
    """Runs calls. One per process; holds no state of its own beyond the services it joins."""

    def __init__(
        self,
        *,
        catalog: Catalog,
        admission: Admission,
        ledger: Ledger,
        prices: PriceBook,
        metrics: Metrics,
        clock: Clock,
        limits: LimitsSettings,
        router: Router,
        cache: ResponseCache,
        experiments: ExperimentBook,
        call_timeout_s: float,
    ) -> None:
        self.catalog = catalog
        self.admission = admission
        self.ledger = ledger
        self.prices = prices
        self.metrics = metrics
        self.clock = clock
        self.router = router
        self.dispatcher = Dispatcher(
            Planner(catalog, router, experiments, clock=clock, limits=limits), router, metrics=metrics, clock=clock
        )
        self._cache = cache
        self._look_for_caches()
        catalog.on_swap(self._look_for_caches)
        # Settlements of calls whose clients are gone and whose answers go on for others.
        self._settling: set[asyncio.Task[None]] = set()
        self.loop = asyncio.get_running_loop()
        self.deadlines = Deadlines(self.loop, timeout_s=call_timeout_s)
        self._deadlines: dict[float, Deadlines] = {}

    def plan(self, call: Call) -> Plan:
        """Which target is asked first. Raises: ModelNotFound, Gone, BadRequest, CircuitOpen."""
        return self.dispatcher.planner.plan(call)

    async def count_input(self, call: Call) -> int:
        """How many input tokens the call would have: the upstream's own count where it has one, else what a
        reservation would take. Nothing is reserved and nothing recorded.

        Raises: ModelNotFound, BadRequest, Unavailable, UpstreamFailed, UpstreamRejected, CallTimeout.
        """
        target = self.plan(call).target
        count = getattr(target.backend, "count_exactly", target.backend.count_input)
        tokens: int = await count(call, model=target.upstream_model)
        return tokens

    def admit(self, call: Call, secret: str) -> Awaitable[Run]:
        """Reserve the call's place and record that it began. The answer must be run, or closed.

        Raises: ModelNotFound, Gone, BadRequest, LimitExceeded, BudgetExceeded, Unauthenticated, Unavailable; nothing
        is held then.
        """
        if self._has_cached:
            model, version = self.dispatcher.planner.resolve(call)
            if model.settings.cache is not None:
                return self._admit_cacheable(call, secret, model, version)
        return self._let_in(call, secret, self.plan(call))

    def _look_for_caches(self) -> None:
        self._has_cached = any(model.settings.cache is not None for model in self.catalog.models.values())

    async def close(self) -> None:
        """Return when every call is settled."""
        while self._settling:
            await asyncio.gather(*self._settling)

    def settle_later(self, settlement: Coroutine[Any, Any, None]) -> None:
        """Have a call settled whose client is gone and whose answer goes on."""
        task = asyncio.create_task(settlement)
        self._settling.add(task)
        task.add_done_callback(self._settling.discard)

    async def _admit_cacheable(self, call: Call, secret: str, model: Model, version: Version) -> Run:
        """As `_let_in`, for a call whose answer may be stored, or on its way to another. That needs no target, so it
        goes on while every circuit is open."""
        ticket: Ticket = Bypass()
        if not passes_through(call, version):
            ticket = await self._cache.consult(call, model=model.settings, version=version.id)
            if call.original is not None:
                call.original = replace(call.original, shared=True)
            if self.dispatcher.planner.resolve(call)[1] is not version:
                # Its alias leads elsewhere by now, and what was asked of the cache is the version's own.
                call.model, call.version = model.id, version.id
        try:
            plan = self.plan(call) if not ticket.free else self.dispatcher.planner.unasked(call, model, version)
            run = await self._let_in(call, secret, plan, ticket=ticket)
        except BaseException:
            ticket.decline()
            raise
        if run.shortened and not ticket.free:
            # What this budget pays for is not what others asked.
            ticket.decline()
            ticket = Bypass()
        run.ticket = ticket
        self.metrics.cached(model.id, ticket.origin, held_bytes=self._cache.held_bytes)
        return run

    async def _let_in(self, call: Call, secret: str, plan: Plan, *, ticket: Ticket | None = None) -> Run:
        """A call whose answer another one makes reserves no tokens, and no money where it is free."""
        requested = call.model
        free, costless = (False, False) if ticket is None else (ticket.free, ticket.costless)
        attempts = Attempts(self.dispatcher, call, plan)
        input_tokens, bound = 0, None
        if not costless:
            try:
                input_tokens = await plan.target.backend.count_input(call, model=plan.target.upstream_model)
            except ModelportError as error:
                input_tokens = await attempts.count_elsewhere(error)
            bound = attempts.bound_output(input_tokens)
        reservation = await self.admission.reserve(
            call,
            secret,
            tokens=0 if free else input_tokens + (bound or 0) * choices(call),
            quote=lambda: (
                Quote(())
                if costless
                else self._quote(call, attempts.plan, input_tokens=input_tokens, output_tokens=bound)
            ),
        )
        try:
            served = attempts.plan.served
            event = self.ledger.open(call, model=served.model, version=served.version, backend=served.backend)
        except BaseException:
            await self.admission.settle(reservation, tokens=0, cost_nanos=0)
            raise
        self.metrics.calls_in_flight += 1
        paid = reservation if type(reservation) is PaidReservation and reservation.nanos is not None else None
        if paid is not None and paid.output_tokens is not None:
            attempts.hold_to(paid.output_tokens)
            if paid.output_tokens != bound:
                shorten(call, paid.output_tokens)
        run = Run(self, call, requested=requested, attempts=attempts, reservation=reservation, paid=paid, event=event)
        run.shortened = paid is not None and paid.output_tokens != bound
        return run

    def _quote(self, call: Call, plan: Plan, *, input_tokens: int, output_tokens: int | None) -> Quote:
        """What the call can cost at most, whatever answers in the end."""
        prices = [self.prices.at(model, at_us=call.started_us) for model in plan.priced_models]
        # A fallback may count the same text in another way.
        exact = not plan.model.settings.targets and len(prices) == 1
        return quote(call, prices, input_tokens=input_tokens, exact=exact, output_tokens=output_tokens)

    def interrupt_of(self, policy: Policy) -> Interrupt:
        """What stops a call from outside: at its route's deadline, or the one of all calls."""
        deadlines = self.deadlines
        if policy.patience is not None and policy.patience.total_s is not None:
            deadlines = self._deadlines_of(policy.patience.total_s)
        if policy.drain_s:
            return PatientInterrupt(self.loop, deadlines, policy.drain_s)
        return Interrupt(self.loop, deadlines)

    def _deadlines_of(self, total_s: float) -> Deadlines:
        if total_s >= self.deadlines.timeout_s:
            return self.deadlines
        found = self._deadlines.get(total_s)
        if found is None:
            found = Deadlines(self.loop, timeout_s=total_s)
            # Callers may ask for any number of seconds; beyond a few different ones, each call has a timer of its own.
            if len(self._deadlines) < _SHARED_DEADLINES:
                self._deadlines[total_s] = found
        return found


def passes_through(call: Call, version: Version) -> bool:
    """Whether an upstream that speaks the call's own dialect may answer: in words that no other door reads, and that
    are lost in translation."""
    original = call.original
    return original is not None and any(target.backend.kind == original.dialect for target in version.targets)
