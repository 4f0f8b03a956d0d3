"""The attempts of one call: each is begun, measured and ended here, and what it was is kept for the receipt.

A plain call makes one attempt, at the only target of its route, and pays for little more than a few numbers. What is
said about others, when the first attempt fails, is made only then.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable

import structlog

from modelport.calls import Call, Delta, Relay
from modelport.errors import CallCancelled, ModelportError
from modelport.inference.attempt import SLOWER, Try
from modelport.inference.hedge import Stream, race, within
from modelport.inference.planning import Plan, Planner
from modelport.kit.clock import Clock
from modelport.metering.model import Attempt
from modelport.observe.metrics import Metrics
from modelport.routing.breaker import GOOD, Outcome
from modelport.routing.model import Cause, Leg
from modelport.routing.plan import Itinerary
from modelport.routing.retry import cause_of, outcome_of
from modelport.routing.service import Router

_log = structlog.get_logger("modelport.routing")


class Dispatcher:
    """What the attempts of every call are made with. One per process."""

    __slots__ = ("clock", "metrics", "planner", "router")

    def __init__(self, planner: Planner, router: Router, *, metrics: Metrics, clock: Clock) -> None:
        self.planner = planner
        self.router = router
        self.metrics = metrics
        self.clock = clock


class Attempts:
    """One call's. Concurrency: used by the one task that runs the call."""

    __slots__ = ("_bound", "_call", "_current", "_desk", "_held", "_itinerary", "count", "plan", "records")

    def __init__(self, desk: Dispatcher, call: Call, plan: Plan) -> None:
        self._desk = desk
        self._call = call
        self._itinerary = plan.itinerary
        self._current: Try | None = None
        # The most output tokens that were reserved for an answer; None where it has none.
        self._bound: int | None = None
        self._held = False
        self.plan = plan
        self.count = 0
        # Every attempt that has ended, where there was more than one or another model is asked; else nothing.
        self.records: list[Attempt] | None = None
        if plan.leg.fallback is not None:
            self._fell_back(plan.leg)

    @property
    def fallback(self) -> Cause | None:
        """Why another model than the one that was asked for answers."""
        return self.plan.leg.fallback

    async def count_elsewhere(self, error: ModelportError) -> int:
        """Input tokens of the call as the next target counts them that can; the first one could not, with `error`.

        Raises: BadRequest, Unavailable.
        """
        while await self.go_on(error):
            target = self.plan.target
            try:
                return await target.backend.count_input(self._call, model=target.upstream_model)
            except ModelportError as another:
                error = another
        raise error

    def bound_output(self, input_tokens: int) -> int | None:
        """The most output tokens that one choice of the answer can have, from now on; None where it has none."""
        self._bound = bound = self._desk.planner.output_bound(self._call, self.plan.model, input_tokens)
        return bound

    def hold_to(self, output_tokens: int) -> None:
        """Have whoever answers be told this bound, which is all that a budget pays for."""
        self._bound, self._held = output_tokens, True

    def receipt(self) -> list[Attempt] | None:
        """What each attempt was, in the order in which they began; None where the usage event says it all."""
        records = self.records or []
        if len(records) < 2 and self.fallback is None:
            return None
        return sorted(records, key=lambda attempt: attempt.started_us)

    def start(self) -> Stream | None:
        """Begin the attempt that is due: its answer's pieces. None where that takes more; then `begin` does it.

        Raises what the target's backend raises before it begins.
        """
        plan = self.plan
        if not plan.simple:
            return None
        number = self._desk.router.enter(plan.leg.candidate.pulse)
        return None if number < 0 else self._open(plan.leg, number)

    async def begin(self) -> Stream:
        """Begin the attempt that is due, after its wait, as a probe or with a rival where it is to have one.

        Raises: CircuitOpen, and what the target's backend raises before it begins.
        """
        leg = self.plan.leg
        if leg.wait_s:
            await asyncio.sleep(leg.wait_s)
        router, pulse = self._desk.router, leg.candidate.pulse
        number = router.enter(pulse)
        if number < 0:
            number = await router.enter_guarded(pulse)
        stream = self._timed(leg, self._open(leg, number))
        hedge = self.plan.policy.hedge
        if hedge is None or leg.fallback is not None:
            return stream
        after_s = hedge.after_s if hedge.quantile is None else pulse.quantile_s(hedge.quantile)
        return stream if after_s is None else self._hedged(stream, after_s)

    async def answer(self, *, spoil: Callable[[], None], relay: Relay | None) -> Stream:
        """The answer's pieces, of the first attempt that gives some, for a call whose answer others may get as well.

        `spoil` is called when another model gives it than was asked. Once output flows, its pieces may go to `relay`.
        `Run.deltas` has the same written out: nearly every call goes there, and a layer around each piece is felt.
        """
        given = began = False
        while True:
            hold, held = self.plan.leg.route.has_choice, list[Delta]()
            try:
                stream = self.start() or await self.begin()
                async with contextlib.aclosing(stream):
                    async for delta in stream:
                        if not began:
                            if delta.timed:
                                began = True
                                self.began(self._desk.clock.monotonic_s())
                            elif hold or not delta.raw:
                                held.append(delta)
                                continue
                        if not given and self.fallback is not None:
                            spoil()
                        given = True
                        while held:
                            yield held.pop(0)
                        yield delta
                        if began:
                            self._call.relay = relay
                while held:
                    yield held.pop(0)
                return
            except ModelportError as error:
                if given or not await self.go_on(error):
                    raise

    def began(self, now_s: float) -> None:
        """The current attempt's output begins now."""
        if self._current is not None:
            self._current.began_s = now_s

    def end(self, error: ModelportError | None, now_s: float, *, in_time: bool = True) -> None:
        """The call is over, and its current attempt with it. Idempotent.

        `in_time` is false where the call's own deadline ended it, which is no fault of a target that had begun.
        """
        current = self._current
        if current is None:
            return
        if error is None and self.records is None:
            # Nearly every call ends here, so it is spared the general way.
            self._current = None
            pulse, began_s = current.leg.candidate.pulse, current.began_s
            latency_s = (now_s if began_s is None else began_s) - current.started_s
            self._desk.router.leave(pulse, GOOD, current.number, latency_s, now_s)
            self._desk.metrics.attempted(pulse.upstream, "ok")
        elif error is None:
            self._close(current, None, GOOD, "ok", now_s)
        elif isinstance(error, CallCancelled) or not (in_time or current.began_s is None):
            self._close(current, error, Outcome.NEUTRAL, "cancelled", now_s)
        else:
            self._fail(current, error, now_s)

    async def go_on(self, error: ModelportError) -> bool:
        """After an attempt failed and nothing of it was passed on: whether `begin` has another one to begin."""
        desk, leg = self._desk, self.plan.leg
        cause = cause_of(error)
        now_s = desk.clock.monotonic_s()
        if cause is Cause.RATE_LIMIT and error.retry_after_s:
            leg.candidate.pulse.rests_until_s = now_s + error.retry_after_s
        following = self._trip().after(leg.candidate, cause, now_s=now_s)
        if following is None:
            return False
        if self.records is None:
            self.records = []
        if self._current is not None:
            self._fail(self._current, error, now_s)
        desk.metrics.retried(cause.value)
        _log.info(
            "attempt_failed",
            request_id=self._call.id,
            upstream=leg.candidate.pulse.upstream,
            model=leg.candidate.pulse.model,
            cause=cause.value,
            internal=error.internal or error.message,
        )
        self._move(following)
        return True

    def _trip(self) -> Itinerary:
        """What else there is to try; made when the only target of a route has failed."""
        if self._itinerary is None:
            leg = self.plan.leg
            self._itinerary = self._desk.planner.itinerary(self._call, leg.route, self.plan.policy)
            self._itinerary.begun(leg.candidate)
        return self._itinerary

    def _move(self, leg: Leg) -> None:
        """Have `leg` be the next attempt, and the plan say so."""
        planner = self._desk.planner
        if leg.route is not self.plan.leg.route:
            self._fell_back(leg)
            self._bound = planner.bound_of(leg.route, self._call, most=self._bound)
        self.plan = planner.replan(self.plan, leg)

    def _fell_back(self, leg: Leg) -> None:
        self.records = self.records or []
        if leg.fallback is not None:
            self._desk.metrics.fell_back(self._call.model, leg.fallback.value)
        # The answer bears the name of the model that gives it.
        self._call.model = leg.route.model
        if not self._call.route:
            # What a call asked for itself holds whoever answers.
            self._call.patience = leg.route.policy.patience

    def _open(self, leg: Leg, number: int) -> Stream:
        self._current = Try(leg, number, self._desk.clock.monotonic_s())
        self.count += 1
        target = leg.candidate.target
        bound = self._bound if self._held or self.plan.imposes else None
        return target.backend.stream(self._call, model=target.upstream_model, max_output_tokens=bound)

    def _timed(self, leg: Leg, stream: Stream) -> Stream:
        """A local engine's stream within the route's times. Upstreams' connections keep them by themselves, without a
        layer around every piece."""
        call, patience = self._call, self._call.patience
        if patience is None or leg.candidate.pulse.upstream:
            return stream
        limit_s = patience.first_token_s if call.stream else patience.answer_s
        return stream if limit_s is None else within(stream, limit_s, whole=not call.stream)

    async def _hedged(self, stream: Stream, after_s: float) -> Stream:
        """The answer of whoever begins first: the current attempt, or a second one that begins `after_s` later."""
        assert self._current is not None
        tries, streams, won = [self._current], [stream], "none"

        def second() -> Stream | None:
            other = self._second(tries[0])
            if other is not None and self._current is not None:
                tries.append(self._current)
                streams.append(other)
            return other

        def failed(index: int, error: ModelportError) -> None:
            self._fail(tries[index], error, self._desk.clock.monotonic_s())
            self._current = tries[1 - index]
            self._move(self._current.leg)

        try:
            winner, pieces = await race(stream, after_s=after_s, second=second, failed=failed)
            won = ("first", "second")[winner]
            self._current = tries[winner]
            self._move(self._current.leg)
            self._drop_all_but_current(tries)
            for delta in pieces:
                yield delta
            async for delta in streams[winner]:
                yield delta
        finally:
            if len(tries) > 1:
                self._desk.metrics.hedged(tries[0].leg.candidate.pulse.upstream, won)
            self._drop_all_but_current(tries)
            for begun in streams:
                await begun.aclose()

    def _second(self, first: Try) -> Stream | None:
        """A second attempt, at another target where there is one; None where it may not, or can't, be made."""
        desk, now_s = self._desk, self._desk.clock.monotonic_s()
        trip = self._trip()
        candidate = trip.second(first.leg.candidate, now_s)
        if candidate is None or not desk.router.ratio.withdraw(now_s):
            return None
        number = desk.router.enter(candidate.pulse)
        if number < 0:
            # A target that is being probed is no help to anybody in a hurry.
            return None
        trip.begun(candidate)
        if self.records is None:
            self.records = []
        leg = first.leg._replace(candidate=candidate, wait_s=0.0, why=Cause.HEDGE)
        try:
            return self._timed(leg, self._open(leg, number))
        except ModelportError as error:
            # The first one goes on as if nothing had been tried.
            if self._current is not None:
                self._fail(self._current, error, now_s)
            self._current = first
            return None

    def _drop_all_but_current(self, tries: list[Try]) -> None:
        now_s = self._desk.clock.monotonic_s()
        for one in tries:
            if one is not self._current:
                self._close(one, None, Outcome.NEUTRAL, "cancelled", now_s, code=SLOWER)

    def _fail(self, current: Try, error: ModelportError, now_s: float) -> None:
        cause = cause_of(error)
        self._close(current, error, outcome_of(cause), cause.value if current.began_s is None else "broken", now_s)

    def _close(
        self,
        current: Try,
        error: ModelportError | None,
        outcome: Outcome,
        word: str,
        now_s: float,
        *,
        code: str | None = None,
    ) -> None:
        """Tell everybody how an attempt ended, once."""
        if current.ended:
            return
        current.ended = True
        if current is self._current:
            self._current = None
        pulse, began_s = current.leg.candidate.pulse, current.began_s
        latency_s = (now_s if began_s is None else began_s) - current.started_s
        self._desk.router.leave(pulse, outcome, current.number, latency_s, now_s)
        self._desk.metrics.attempted(pulse.upstream, word)
        if self.records is not None:
            self.records.append(current.record(self._call, error, code, now_s))
