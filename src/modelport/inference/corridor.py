"""admit → plan → run → settle: the one path of every inference call.

Everything streams: a door that answers with JSON collects the stream. Whatever happens to a call, it is settled once,
in the `finally` of `Run.deltas`.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator

from modelport.budgets.quote import Quote
from modelport.calls import Call, Delta, Usage
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
        self.loop = asyncio.get_running_loop()
        self.deadlines = Deadlines(self.loop, timeout_s=call_timeout_s)
        self._deadlines: dict[float, Deadlines] = {}

    def plan(self, call: Call) -> Plan:
        """Which target is asked first. Raises: ModelNotFound, BadRequest, CircuitOpen."""
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

        Raises: ModelNotFound, BadRequest, LimitExceeded, BudgetExceeded, Unauthenticated, Unavailable; nothing is
        held then.
        """
        requested = call.model
        plan = self.plan(call)
        attempts = Attempts(self.dispatcher, call, plan)
        try:
            input_tokens = await plan.target.backend.count_input(call, model=plan.target.upstream_model)
        except ModelportError as error:
            input_tokens = await attempts.count_elsewhere(error)
        bound = attempts.bound_output(input_tokens)
        reservation = await self.admission.reserve(
            call,
            secret,
            tokens=input_tokens + (bound or 0) * choices(call),
            quote=lambda: self._quote(call, attempts.plan, input_tokens=input_tokens, output_tokens=bound),
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
        return Run(self, call, requested=requested, attempts=attempts, reservation=reservation, paid=paid, event=event)

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
        attempts, given = self.attempts, False
        try:
            while True:
                # Where somebody else could still answer, an opening without output is not worth to be bound by.
                hold = attempts.plan.leg.route.has_choice
                held: list[Delta] = []
                try:
                    stream = self._stream = attempts.start() or await attempts.begin()
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
                    if given or not await attempts.go_on(error):
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
        self._charge()
        tokens = self.usage.input_tokens + self.usage.output_tokens
        try:
            if self.error is not None and stream is not None:
                await stream.aclose()
            await self._corridor.admission.settle(self.reservation, tokens=tokens, cost_nanos=self.cost_nanos)
        except asyncio.CancelledError:
            await asyncio.shield(asyncio.create_task(self._finish(stream, tokens)))
            raise

    async def _finish(self, stream: AsyncGenerator[Delta] | None, tokens: int) -> None:
        if stream is not None:
            await stream.aclose()
        await self._corridor.admission.settle(self.reservation, tokens=tokens, cost_nanos=self.cost_nanos)

    def _charge(self) -> None:
        """Price what was produced and close the call's record."""
        attempts, interrupt = self.attempts, self.interrupt
        now_s = self._corridor.clock.monotonic_s()
        attempts.end(self.error, now_s, in_time=self.error is None or self.error is not interrupt.error)
        if self.error is None and interrupt.gone:
            # Read on to its end for a client that is gone: charged in full, and told as what it was.
            self.error = CallCancelled()
        call, served, usage = self.call, attempts.plan.served, self.usage
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
                discount_basis_points=call.caller.discount_basis_points,
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

    def _since_start_us(self, now_s: float) -> int:
        return int((now_s - self.call.started_s) * 1_000_000)
