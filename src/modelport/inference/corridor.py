"""admit → plan → run → settle: the one path of every inference call.

Everything streams: a door that answers with JSON collects the stream. Whatever happens to a call, it is settled once,
in the `finally` of `Run.deltas`.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from typing import NamedTuple

from modelport.calls import Call, Delta, Operation, Served, Usage
from modelport.catalog.model import Model, Target
from modelport.catalog.rules import check_operation
from modelport.catalog.service import Catalog
from modelport.errors import CallCancelled, Internal, ModelNotFound, ModelportError
from modelport.inference.admission import Admission
from modelport.inference.interrupt import Deadlines, Interrupt
from modelport.kit.clock import Clock
from modelport.limits.service import Reservation
from modelport.metering.ledger import Ledger
from modelport.metering.model import UsageEvent
from modelport.metering.prices import PriceBook
from modelport.observe.metrics import Metrics
from modelport.settings import LimitsSettings

SCOPE = "inference"


class Plan(NamedTuple):
    """What will answer a call."""

    model: Model
    target: Target
    served: Served


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
        sandbox: Target,
        call_timeout_s: float,
    ) -> None:
        self.catalog = catalog
        self.admission = admission
        self.ledger = ledger
        self.prices = prices
        self.metrics = metrics
        self.clock = clock
        self._limits = limits
        self._sandbox = sandbox
        self.loop = asyncio.get_running_loop()
        self.deadlines = Deadlines(self.loop, timeout_s=call_timeout_s)

    def plan(self, call: Call) -> Plan:
        """Which target answers. Raises: ModelNotFound, BadRequest."""
        model, version = self.catalog.get(call.model, version=call.version)
        if not call.caller.may_use(model.id):
            raise ModelNotFound(f"The model {call.model!r} does not exist or is not open to this key.", param="model")
        check_operation(model, call.operation)
        target = version.targets[0]
        if call.caller.mode == "test" and model.settings.targets:
            # A test key never spends an upstream's money: the sandbox answers in the model's name.
            target = self._sandbox
        return Plan(model, target, Served(model.id, version.id, target.backend.kind, target.upstream_model))

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

        Raises: ModelNotFound, BadRequest, LimitExceeded, Unauthenticated, Unavailable; nothing is held then.
        """
        plan = self.plan(call)
        input_tokens = await plan.target.backend.count_input(call, model=plan.target.upstream_model)
        bound = self._output_bound(call, plan.model, input_tokens)
        reservation = await self.admission.reserve(call, secret, tokens=input_tokens + (bound or 0) * _choices(call))
        try:
            served = plan.served
            event = self.ledger.open(call, model=served.model, version=served.version, backend=served.backend)
        except BaseException:
            await self.admission.settle(reservation, tokens=0)
            raise
        self.metrics.calls_in_flight += 1
        # An upstream keeps its own default: only a bound that the operator configured is imposed on it.
        enforced = bound if not plan.model.settings.targets or plan.model.settings.max_output_tokens else None
        return Run(self, call, plan=plan, reservation=reservation, event=event, max_output_tokens=enforced)

    def _output_bound(self, call: Call, model: Model, input_tokens: int) -> int | None:
        """The most output tokens one choice can have; None where the operation has none."""
        if call.operation not in (Operation.CHAT, Operation.COMPLETION):
            return None
        asked: int | None = call.request.output_bound
        bound = asked or model.settings.max_output_tokens or self._limits.default_output_tokens
        context = model.settings.context_tokens
        return bound if context is None else max(min(bound, context - input_tokens), 1)


class Run:
    """One admitted call: its answer's deltas, and what came of it."""

    __slots__ = (
        "_corridor",
        "_event",
        "_max_output_tokens",
        "_settled",
        "call",
        "cost_nanos",
        "error",
        "first_token_us",
        "interrupt",
        "plan",
        "reservation",
        "usage",
    )

    def __init__(
        self,
        corridor: Corridor,
        call: Call,
        *,
        plan: Plan,
        reservation: Reservation,
        event: UsageEvent,
        max_output_tokens: int | None,
    ) -> None:
        self._corridor = corridor
        self._event = event
        self._max_output_tokens = max_output_tokens
        self._settled = False
        self.call = call
        self.plan = plan
        self.reservation = reservation
        self.interrupt = Interrupt(corridor.loop)
        self.usage = Usage()
        self.cost_nanos = 0
        self.error: ModelportError | None = None
        self.first_token_us: int | None = None

    async def deltas(self) -> AsyncGenerator[Delta]:
        """The answer's pieces, then the settlement.

        Settled however the stream ends: finished, failed upstream, out of time, or dropped by a client that hung up.
        What was produced until then is charged. No database connection is held while the model runs.

        Raises: ModelportError, CallCancelled and CallTimeout for an interrupt among them.
        """
        target = self.plan.target
        stream = target.backend.stream(
            self.call, model=target.upstream_model, max_output_tokens=self._max_output_tokens
        )
        try:
            async for delta in stream:
                if delta.usage is not None:
                    self.usage = delta.usage
                if self.first_token_us is None and delta.timed:
                    self.first_token_us = self._elapsed_us()
                yield delta
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
            await self._settle(stream)

    async def _settle(self, stream: AsyncGenerator[Delta]) -> None:
        """Charge, give back, and stop the engine; the charge first, since it can't be cancelled.

        A cancellation that arrives meanwhile does not stop it.
        """
        if self._settled:
            return
        self._settled = True
        self._charge()
        tokens = self.usage.input_tokens + self.usage.output_tokens
        try:
            if self.error is not None:
                await stream.aclose()
            await self._corridor.admission.settle(self.reservation, tokens=tokens)
        except asyncio.CancelledError:
            await asyncio.shield(asyncio.create_task(self._finish(stream, tokens)))
            raise

    async def _finish(self, stream: AsyncGenerator[Delta], tokens: int) -> None:
        await stream.aclose()
        await self._corridor.admission.settle(self.reservation, tokens=tokens)

    def _charge(self) -> None:
        """Price what was produced and close the call's record."""
        call, served, usage = self.call, self.plan.served, self.usage
        latency_us = self._elapsed_us()
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
        self._corridor.ledger.close(event)

    def _elapsed_us(self) -> int:
        return int((self._corridor.clock.monotonic_s() - self.call.started_s) * 1_000_000)


def _choices(call: Call) -> int:
    """How many answers were asked for, each with a bound of its own."""
    prompts = getattr(call.request, "prompt", None)
    many = len(prompts) if isinstance(prompts, list) and prompts and not isinstance(prompts[0], int) else 1
    return (getattr(call.request, "n", None) or 1) * many
