"""admit → plan → replay → run → settle: the one path of every inference call.

Everything streams: a door that answers with JSON collects the stream. Whatever happens to a call, it is settled once,
in the `finally` of `Run.deltas`.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Coroutine
from dataclasses import replace
from typing import Any

from modelport.budgets.quote import Quote
from modelport.calls import Call, Delta, Usage
from modelport.catalog.model import Model, Version
from modelport.catalog.service import Catalog
from modelport.errors import CallCancelled, Internal, ModelportError
from modelport.inference.admission import Admission
from modelport.inference.attempts import Attempts, Dispatcher
from modelport.inference.cashier import PaidReservation
from modelport.inference.ceiling import Ceiling, shorten
from modelport.inference.interrupt import Deadlines, Interrupt, PatientInterrupt
from modelport.inference.planning import Plan, Planner
from modelport.inference.quoting import choices, quote
from modelport.kit.clock import Clock
from modelport.limits.service import Reservation
from modelport.metering.ledger import Ledger
from modelport.metering.model import UsageEvent
from modelport.metering.prices import PriceBook
from modelport.observe.metrics import Metrics
from modelport.replay.cache.rules import hit_discount
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
            Planner(catalog, router, clock=clock, limits=limits), router, metrics=metrics, clock=clock
        )
        self._cache = cache
        self._has_cached = any(model.settings.cache is not None for model in catalog.models.values())
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

    async def admit(self, call: Call, secret: str) -> Run:
        """Reserve the call's place and record that it began. The answer must be run, or closed.

        Raises: ModelNotFound, Gone, BadRequest, LimitExceeded, BudgetExceeded, Unauthenticated, Unavailable; nothing
        is held then.
        """
        if self._has_cached:
            model, version = self.dispatcher.planner.resolve(call)
            if model.settings.cache is not None:
                return await self._admit_cacheable(call, secret, model, version)
        return await self._let_in(call, secret, self.plan(call))

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


class Run:
    """One admitted call: its answer's deltas, and what came of it."""

    __slots__ = (
        "_ceiling",
        "_corridor",
        "_event",
        "_settled",
        "_stream",
        "attempts",
        "call",
        "cost_nanos",
        "error",
        "first_token_us",
        "interrupt",
        "paid",
        "requested",
        "reservation",
        "shortened",
        "ticket",
        "usage",
    )

    def __init__(
        self,
        corridor: Corridor,
        call: Call,
        *,
        requested: str,
        attempts: Attempts,
        reservation: Reservation,
        paid: PaidReservation | None,
        event: UsageEvent,
    ) -> None:
        """`requested` is the model as the caller named it; `call.model` is the one that answers. `paid` is the
        reservation where a hard budget bounds what the call may cost."""
        self._corridor = corridor
        self._event = event
        self._stream: AsyncGenerator[Delta] | None = None
        self._settled = False
        self.call = call
        self.requested = requested
        self.attempts = attempts
        self.reservation = reservation
        self.paid = paid
        self._ceiling: Ceiling | None = None
        if paid is not None and paid.output_tokens is not None:
            many = choices(call)
            self._ceiling = Ceiling(call, output_tokens=paid.output_tokens * many, choices=many)
        # Whether a budget pays for less than was asked.
        self.shortened = False
        # Of a call to a model with a cache: where its answer comes from.
        self.ticket: Ticket | None = None
        self.interrupt = corridor.interrupt_of(attempts.plan.policy)
        self.usage = Usage()
        self.cost_nanos = 0
        self.error: ModelportError | None = None
        self.first_token_us: int | None = None

    @property
    def plan(self) -> Plan:
        """What answers, as far as it is known by now: it can change until the first delta."""
        return self.attempts.plan

    async def deltas(self) -> AsyncGenerator[Delta]:
        """The answer's pieces, then the settlement.

        An attempt that fails before a piece of it was yielded is followed by the next one, as the route says. Settled
        however the stream ends: finished, failed upstream, out of time, or dropped by a client that hung up. What was
        produced until then is charged. No database connection is held while the model runs.

        Raises: ModelportError, CallCancelled and CallTimeout for an interrupt among them.
        """
        attempts, ticket, given = self.attempts, self.ticket, False
        try:
            while True:
                # Where somebody else could still answer, an opening without output is not worth to be bound by.
                hold = ticket is None and attempts.plan.leg.route.has_choice
                held: list[Delta] = []
                try:
                    stream = ticket.read(self._make) if ticket else attempts.start() or await attempts.begin()
                    self._stream = stream
                    async for delta in stream:
                        if delta.usage is not None:
                            self.usage = delta.usage
                        if self.first_token_us is None:
                            if delta.timed:
                                now_s = self._corridor.clock.monotonic_s()
                                self.first_token_us = self._since_start_us(now_s)
                                attempts.began(now_s)
                            elif hold or not delta.raw:
                                held.append(delta)
                                continue
                        given = True
                        while held:
                            yield held.pop(0)
                        yield delta
                        if self._ceiling is not None and (ending := self._ending(self._ceiling, delta)):
                            await stream.aclose()
                            yield ending
                            return
                    while held:
                        yield held.pop(0)
                    return
                except ModelportError as error:
                    if given or ticket is not None or not await attempts.go_on(error):
                        raise
                    self.usage = Usage()
        except ModelportError as error:
            self.error = error
            raise
        except asyncio.CancelledError:
            self.error = self.interrupt.claim() or CallCancelled()
            if self.interrupt.error is None:
                raise
            raise self.error from None
        except GeneratorExit:
            self.error = self.interrupt.error or CallCancelled()
            raise
        except BaseException:
            self.error = Internal()
            raise
        finally:
            await self._settle(self._stream)

    async def _make(self) -> AsyncGenerator[Delta]:
        """The answer, made for whoever listens; one of another model than was asked is for now alone."""
        attempts = self.attempts
        async for delta in attempts.answer():
            if attempts.fallback is not None and self.ticket is not None:
                self.ticket.spoil()
            yield delta

    def _ending(self, ceiling: Ceiling, delta: Delta) -> Delta | None:
        """What ends the answer where the upstream gave more than it was asked for, and the budget has no more."""
        ending = ceiling.ending(delta, self.usage)
        if ending is not None:
            self._corridor.metrics.budget_action("stopped")
        return ending

    async def _settle(self, stream: AsyncGenerator[Delta] | None) -> None:
        """Charge, give back, and stop the engine; the charge first, since it can't be cancelled.

        A cancellation that arrives meanwhile does not stop it.
        """
        if self._settled:
            return
        self._settled = True
        ticket = self.ticket
        if ticket is not None and ticket.leave() and isinstance(self.error, CallCancelled):
            self._corridor.settle_later(self._settle_landed(stream, ticket))
            return
        tokens = self._charge()
        try:
            if self.error is not None and stream is not None:
                await stream.aclose()
            if ticket is not None:
                await ticket.close()
            await self._corridor.admission.settle(self.reservation, tokens=tokens, cost_nanos=self.cost_nanos)
        except asyncio.CancelledError:
            await asyncio.shield(asyncio.create_task(self._finish(stream, tokens)))
            raise

    async def _settle_landed(self, stream: AsyncGenerator[Delta] | None, ticket: Ticket) -> None:
        """Settle once the answer has ended: its client is gone, and others, who pay nothing for it, listen on."""
        if stream is not None:
            await stream.aclose()
        await ticket.landed()
        tokens = self._charge()
        await self._corridor.admission.settle(self.reservation, tokens=tokens, cost_nanos=self.cost_nanos)

    async def _finish(self, stream: AsyncGenerator[Delta] | None, tokens: int) -> None:
        if stream is not None:
            await stream.aclose()
        if self.ticket is not None:
            await self.ticket.close()
        await self._corridor.admission.settle(self.reservation, tokens=tokens, cost_nanos=self.cost_nanos)

    def _charge(self) -> int:
        """Price what was produced and close the call's record; the tokens that count in its limits."""
        attempts, interrupt = self.attempts, self.interrupt
        now_s = self._corridor.clock.monotonic_s()
        attempts.end(self.error, now_s, in_time=self.error is None or self.error is not interrupt.error)
        if self.error is None and interrupt.gone:
            # Read on to its end for a client that is gone: charged in full, and told as what it was.
            self.error = CallCancelled()
        call, served = self.call, attempts.plan.served
        free = self.ticket is not None and self._take_share(self.ticket)
        usage = self.usage
        latency_us = self._since_start_us(now_s)
        price_id: str | None = None
        # A failure on our side or the upstream's is free; a client that hung up pays for what was produced.
        billable = self.error is None or isinstance(self.error, CallCancelled)
        if billable and call.caller.mode == "live":
            self.cost_nanos, price_id = self._corridor.prices.cost(
                served.model,
                usage,
                at_us=call.started_us,
                latency_us=latency_us,
                discount_basis_points=self._event.discount_basis_points,
            )
            if self.paid is not None and self.paid.nanos is not None:
                # What a budget did not reserve is not charged, whatever an upstream says it used.
                self.cost_nanos = min(self.cost_nanos, self.paid.nanos)
        status = self.error.status if self.error is not None else 200
        self._corridor.metrics.call_ended(
            call.endpoint,
            served.model,
            status,
            latency_us=latency_us,
            # Of an answer that does not stream, the first piece is the whole.
            first_token_us=self.first_token_us if call.stream else None,
            usage=usage,
        )
        self._corridor.metrics.calls_in_flight -= 1
        event = self._event
        event.status = status
        event.error_code = self.error.code if self.error is not None else None
        event.input_tokens = usage.input_tokens
        event.output_tokens = usage.output_tokens
        event.cached_tokens = usage.cached_tokens
        event.images = usage.images
        event.exact = usage.exact
        event.cost_nanos = self.cost_nanos
        event.price_id = price_id
        event.latency_us = latency_us
        event.first_token_us = self.first_token_us
        if attempts.records is not None:
            event.model, event.version, event.backend = served.model, served.version, served.backend
            event.attempts = attempts.receipt()
        self._corridor.ledger.close(event)
        return 0 if free else usage.input_tokens + usage.output_tokens

    def _take_share(self, ticket: Ticket) -> bool:
        """Owe what the ticket says of an answer that others may have got too; whether it is somebody else's work."""
        share = ticket.share(self.usage)
        self.usage = share.usage
        if share.free:
            discount = self.call.caller.discount_basis_points
            self._event.discount_basis_points = hit_discount(discount, price_basis_points=share.price_basis_points)
        return share.free

    def _since_start_us(self, now_s: float) -> int:
        return int((now_s - self.call.started_s) * 1_000_000)


def passes_through(call: Call, version: Version) -> bool:
    """Whether an upstream that speaks the call's own dialect may answer: in words that no other door reads, and that
    are lost in translation."""
    original = call.original
    return original is not None and any(target.backend.kind == original.dialect for target in version.targets)
