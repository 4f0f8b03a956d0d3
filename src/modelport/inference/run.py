"""One call that was let in: its answer, made or taken from another call, and its settlement.

Whatever happens to a call, it is settled once, in the `finally` of `Run.deltas`.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from typing import TYPE_CHECKING

from modelport.calls import Call, Delta, Relay, Usage
from modelport.errors import CallCancelled, Internal, ModelportError
from modelport.inference.attempts import Attempts
from modelport.inference.cashier import PaidReservation
from modelport.inference.ceiling import Ceiling
from modelport.inference.planning import Plan
from modelport.inference.quoting import choices
from modelport.limits.service import Reservation
from modelport.metering.model import UsageEvent
from modelport.replay.cache.rules import hit_discount
from modelport.replay.cache.ticket import Ticket

if TYPE_CHECKING:
    from modelport.inference.corridor import Corridor


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
        "relay",
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
        # Set by a door that takes pieces from anywhere, once the answer has begun.
        self.relay: Relay | None = None
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
        however the stream ends: finished, failed, out of time, or dropped by a client that hung up. What was produced
        until then is charged. No database connection is held meanwhile. Raises: ModelportError.
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
                        if self.relay is not None:
                            self._open_relay(self.relay)
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

    def _open_relay(self, relay: Relay) -> None:
        """Let pieces go straight to the door, where nothing has to be seen to for each of them."""
        if self.first_token_us is not None:
            self.relay = None
            if self._ceiling is not None:
                return
            if self.ticket is None:
                self.call.relay = relay
            else:
                self.ticket.listen(relay)

    def _make(self) -> AsyncGenerator[Delta]:
        """The answer, made for whoever listens; one of another model than was asked is for now alone."""
        ticket = self.ticket
        assert ticket is not None
        return self.attempts.answer(spoil=ticket.spoil, relay=ticket.relay())

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
        if call.relay is not None:
            if call.relay.count is not None:
                self.usage = call.relay.count()
            # The two hold each other, which only the garbage collector would see.
            call.relay = None
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
            served,
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
