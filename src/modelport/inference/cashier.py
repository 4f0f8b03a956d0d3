"""Calls that spend money of a budget: their place in the limits and in the purses, taken in one operation."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import cast

from modelport.budgets import rules
from modelport.budgets.quote import Quote
from modelport.budgets.rules import Fit, Purse
from modelport.budgets.treasury import Treasury
from modelport.calls import Budget, Call
from modelport.errors import BudgetExceeded, LimitExceeded, StateUnavailable
from modelport.inference.queues import Place, Queues
from modelport.kit.clock import Clock
from modelport.limits import rules as limit_rules
from modelport.limits.service import Limiter, Reservation
from modelport.observe.metrics import Metrics
from modelport.settings import BudgetsSettings
from modelport.state.protocol import Level, PurseLevel, Taken

# A state that has been told what was spent knows it; one that goes on asking loses its memory again and again.
_SEEDINGS = 5
# Purses that are remembered; one that is dropped is only worked out again.
_MAX_PURSES = 10_000


class PaidReservation(Reservation):
    """A call's place in the limits and the purses.

    `nanos` is what it may cost at most, None where nothing limits it; `output_tokens` the bound of each answer that
    this pays for.
    """

    __slots__ = ("nanos", "output_tokens", "purses")

    def __init__(self, taken: Taken, purses: Sequence[Purse], *, nanos: int | None, output_tokens: int | None) -> None:
        super().__init__(taken)
        self.purses = purses
        self.nanos = nanos
        self.output_tokens = output_tokens

    @property
    def levels(self) -> list[Level]:
        """The limits', without the purses'."""
        return self.taken.levels[: len(self.taken.levels) - len(self.purses)]

    def left_nanos(self, cost_nanos: int | None = None) -> int | None:
        """What further calls could spend of the tightest budget, beside this call's reservation or, at its end,
        its cost; None without a hard limit."""
        level = rules.tightest(self.purse_levels)
        if level is None:
            return None
        return level.remaining if cost_nanos is None else level.remaining + level.bucket.amount - cost_nanos

    @property
    def purse_levels(self) -> list[PurseLevel]:
        return cast(list[PurseLevel], self.taken.levels[len(self.taken.levels) - len(self.purses) :])

    def settlement(self, *, tokens: int, cost_nanos: int) -> list[int]:
        """What was used in the end, in the order of the buckets."""
        return [*limit_rules.settled_amounts(self.levels, tokens=tokens), *[cost_nanos] * len(self.purses)]


class Cashier:
    """Concurrency: any number of tasks; exact across all processes that share the state."""

    def __init__(
        self, limiter: Limiter, treasury: Treasury, *, clock: Clock, settings: BudgetsSettings, metrics: Metrics
    ) -> None:
        self._limiter = limiter
        self._treasury = treasury
        self._clock = clock
        self._settings = settings
        self._metrics = metrics
        self._purses: dict[str, Purse] = {}
        self._queues = Queues(asyncio.get_running_loop(), clock)

    async def reserve(self, call: Call, *, tokens: int, quote: Quote) -> Reservation:
        """The call's place in the limits (`tokens` of them) and, at its worst case, in its purses; or nothing at all.

        Where the budget can't pay for the whole answer, the bound of the answer is what it pays for.
        Raises: LimitExceeded, BudgetExceeded, StateUnavailable; Unavailable where what was spent can't be read.
        """
        purses = [
            self._purse(budget, call.started_us)
            for budget in call.caller.budgets
            if rules.concerns(budget, call.metadata)
        ]
        bound, seedings = quote.output_tokens, 0
        place: Place | None = None
        try:
            while True:
                taken = await self._take(call, purses, quote, bound=bound, tokens=tokens)
                if taken.refused < 0:
                    return self._taken(taken, purses, quote, bound=bound)
                levels = cast(list[PurseLevel], taken.levels[len(taken.levels) - len(purses) :])
                if taken.refused < len(taken.levels) - len(purses):
                    raise _limit_refusal(taken, purses)
                unknown = [purse for purse, level in zip(purses, levels, strict=True) if level.spent is None]
                if unknown:
                    seedings += 1
                    if seedings > _SEEDINGS:
                        raise StateUnavailable(internal="the state forgets what was spent again and again")
                    await self._treasury.seed(unknown)
                    continue
                verdict, bound = rules.fit(quote, levels)
                if verdict is Fit.SPENT:
                    raise self._spent(purses, levels, quote, fence=taken.fence)
                if verdict is Fit.WAIT:
                    bound = quote.output_tokens
                    place = place or self._queue_up(_scarcest(purses, levels)[0])
                    if not await place.turn():
                        raise rules.busy(_scarcest(purses, levels)[0].budget)
        finally:
            if place is not None:
                place.leave()

    async def settle(self, reservation: PaidReservation, *, tokens: int, cost_nanos: int) -> None:
        """Charge the purses and end the call's place in the limits. Idempotent. Raises: StateUnavailable."""
        await self._limiter.correct(reservation.taken, reservation.settlement(tokens=tokens, cost_nanos=cost_nanos))
        for purse in reservation.purses:
            self._queues.wake(purse.key)

    def _purse(self, budget: Budget, at_us: int) -> Purse:
        """The budget's purse; a month or a day is worked out once, and not for each call in it."""
        purse = self._purses.get(budget.id)
        if purse is None or not rules.holds_at(purse, budget, at_us):
            if len(self._purses) >= _MAX_PURSES:
                self._purses.clear()
            purse = self._purses[budget.id] = rules.purse_at(budget, at_us)
        return purse

    async def _take(
        self, call: Call, purses: Sequence[Purse], quote: Quote, *, bound: int | None, tokens: int
    ) -> Taken:
        shortened = ((quote.output_tokens or 0) - (bound or 0)) * quote.choices
        nanos = quote.nanos(bound)
        wanted = [purse.bucket(nanos) for purse in purses]
        return await self._limiter.take(call.id, call.caller, wanted, tokens=tokens - shortened)

    def _taken(self, taken: Taken, purses: Sequence[Purse], quote: Quote, *, bound: int | None) -> PaidReservation:
        self._treasury.use(purses)
        if bound != quote.output_tokens:
            self._metrics.budget_action("shortened")
        limited = any(purse.budget.hard_nanos is not None for purse in purses)
        return PaidReservation(taken, purses, nanos=quote.nanos(bound) if limited else None, output_tokens=bound)

    def _spent(
        self, purses: Sequence[Purse], levels: Sequence[PurseLevel], quote: Quote, *, fence: int
    ) -> BudgetExceeded:
        self._metrics.budget_action("refused")
        purse, left_nanos = _scarcest(purses, levels)
        self._treasury.reached(purse)
        error = rules.refusal(purse.budget, purse.end_us, left_nanos=left_nanos, needed_nanos=quote.least_nanos)
        error.fence = fence
        return error

    def _queue_up(self, purse: Purse) -> Place:
        """A place among the calls that wait for the purse. Raises: LimitExceeded when too many wait already."""
        if not self._settings.wait_s or len(self._queues) >= self._settings.max_waiting:
            raise rules.busy(purse.budget)
        self._metrics.budget_action("waited")
        return self._queues.join(purse.key, wait_s=self._settings.wait_s)


def _scarcest(purses: Sequence[Purse], levels: Sequence[PurseLevel]) -> tuple[Purse, int]:
    """Of the purses with a limit, the one of which least would be left if nothing were running, and how much."""
    left = [
        (level.bucket.limit - (level.spent or 0), index)
        for index, level in enumerate(levels)
        if level.bucket.limit < rules.UNLIMITED
    ]
    nanos, index = min(left)
    return purses[index], nanos


def _limit_refusal(taken: Taken, purses: Sequence[Purse]) -> LimitExceeded:
    """A limit's refusal, told without the purses that were asked beside it."""
    taken.levels = taken.levels[: len(taken.levels) - len(purses)]
    return limit_rules.refusal(taken)
