"""What can be done with budgets. Every method acts for a caller and sees that caller's organization alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import replace

from msgspec import UNSET
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncConnection

from modelport.budgets import rules, store
from modelport.budgets.model import BudgetChange, BudgetPage, NewBudget, Standing
from modelport.budgets.treasury import Treasury
from modelport.calls import Budget, Caller
from modelport.db.engine import Database
from modelport.errors import BadRequest, Conflict, NotFound, PermissionDenied, Unprocessable
from modelport.kit.clock import Clock
from modelport.kit.ids import IdSource

# Of one organization: each call looks through its tags' budgets, and each key in a cache refers to all of them.
MAX_BUDGETS = 200
MAX_PAGE = 100

# Around a change of an organization's budgets: whoever caches them with its keys is told.
Announce = Callable[[str], AbstractAsyncContextManager[None]]


class BudgetService:
    """Concurrency: any number of tasks and processes; a change holds in every process once the method returns."""

    def __init__(self, db: Database, treasury: Treasury, *, clock: Clock, ids: IdSource, announce: Announce) -> None:
        """`announce` is given an organization's id (`access.announce.announced` with the state)."""
        self._db = db
        self._treasury = treasury
        self._clock = clock
        self._ids = ids
        self._announce = announce

    async def create(self, actor: Caller, new: NewBudget) -> Standing:
        """A budget of the caller's organization.

        Raises: BadRequest, PermissionDenied (a test key), NotFound (the target), Conflict (the target has one for
        this period), Unprocessable (too many), StateUnavailable with nothing made.
        """
        _check_live(actor)
        budget = self._made(actor, new)
        async with self._db.connect() as conn:
            await _check_target(conn, budget)
        try:
            async with self._announce(actor.organization_id), self._db.begin() as conn:
                if await store.count_budgets(conn, organization_id=actor.organization_id) >= MAX_BUDGETS:
                    raise Unprocessable(f"An organization has at most {MAX_BUDGETS} budgets; delete some first.")
                await store.insert_budget(conn, budget=budget)
        except IntegrityError:
            raise Conflict(
                f"There is a budget for this {budget.scope} and the period {budget.period!r} already; change that one."
            ) from None
        return await self._standing(budget)

    async def list_page(self, actor: Caller, *, after: str | None, limit: int, order: store.Order) -> BudgetPage:
        """Budgets of the organization behind `after` (a budget's id). Raises: BadRequest."""
        if not 1 <= limit <= MAX_PAGE:
            raise BadRequest(f"limit is from 1 to {MAX_PAGE}.", param="limit")
        async with self._db.connect() as conn:
            found = await store.list_budgets(
                conn, organization_id=actor.organization_id, after=after, limit=limit + 1, order=order
            )
        return BudgetPage(await self.standings(found[:limit]), has_more=len(found) > limit)

    async def get(self, actor: Caller, budget_id: str) -> Standing:
        """The organization's budget as it stands. Raises: NotFound, also for another organization's."""
        return await self._standing(await self._get(actor, budget_id))

    async def update(self, actor: Caller, budget_id: str, change: BudgetChange) -> Standing:
        """Change the limits; they hold everywhere at the next call.

        Raises: BadRequest, PermissionDenied (a test key), NotFound, StateUnavailable with nothing changed.
        """
        _check_live(actor)
        budget = await self._get(actor, budget_id)
        soft, hard = budget.soft_nanos, budget.hard_nanos
        if change.soft_limit_usd is not UNSET:
            soft = rules.parse_limit(change.soft_limit_usd, param="soft_limit_usd")
        if change.hard_limit_usd is not UNSET:
            hard = rules.parse_limit(change.hard_limit_usd, param="hard_limit_usd")
        rules.check_limits(soft, hard)
        if (soft, hard) != (budget.soft_nanos, budget.hard_nanos):
            values = {"soft_nanos": soft, "hard_nanos": hard}
            async with self._announce(actor.organization_id), self._db.begin() as conn:
                if not await store.update_budget(
                    conn, organization_id=actor.organization_id, budget_id=budget_id, values=values
                ):
                    raise _missing(budget_id)
        return await self._standing(replace(budget, soft_nanos=soft, hard_nanos=hard))

    async def delete(self, actor: Caller, budget_id: str) -> None:
        """Remove the budget; nothing is held to it from the next call on.

        Raises: PermissionDenied (a test key), NotFound, StateUnavailable with nothing changed.
        """
        _check_live(actor)
        await self._get(actor, budget_id)
        async with self._announce(actor.organization_id), self._db.begin() as conn:
            await store.delete_budget(conn, organization_id=actor.organization_id, budget_id=budget_id)

    async def standings(self, budgets: Sequence[Budget]) -> list[Standing]:
        """What was spent of these in their present periods, and what is reserved. Raises: Unavailable."""
        now_us = self._clock.now_us()
        purses = [rules.purse_at(budget, now_us) for budget in budgets]
        levels = await self._treasury.levels(purses)
        return [
            Standing(purse.budget, level.spent or 0, level.held, purse.start_us, purse.end_us)
            for purse, level in zip(purses, levels, strict=True)
        ]

    def _made(self, actor: Caller, new: NewBudget) -> Budget:
        soft = rules.parse_limit(new.soft_limit_usd, param="soft_limit_usd")
        hard = rules.parse_limit(new.hard_limit_usd, param="hard_limit_usd")
        rules.check_limits(soft, hard)
        target = actor.organization_id if new.scope == "organization" and new.target is None else new.target
        if target is None:
            raise BadRequest(f"A budget of a {new.scope} names its target.", param="target")
        if new.scope == "tag":
            rules.check_tag(target)
        return Budget(
            self._ids.new("budget_"),
            actor.organization_id,
            new.scope,
            target,
            new.period,
            soft_nanos=soft,
            hard_nanos=hard,
            created_us=self._clock.now_us(),
        )

    async def _standing(self, budget: Budget) -> Standing:
        (standing,) = await self.standings([budget])
        return standing

    async def _get(self, actor: Caller, budget_id: str) -> Budget:
        async with self._db.connect() as conn:
            budget = await store.find_budget(conn, organization_id=actor.organization_id, budget_id=budget_id)
        if budget is None:
            raise _missing(budget_id)
        return budget


async def _check_target(conn: AsyncConnection, budget: Budget) -> None:
    """Raises: NotFound for what is not the organization's own, whoever's it is."""
    if budget.scope == "organization":
        known = budget.target == budget.organization_id
    elif budget.scope == "tag":
        return
    else:
        known = await store.has_target(
            conn, organization_id=budget.organization_id, scope=budget.scope, target=budget.target
        )
    if not known:
        raise NotFound(f"There is no {budget.scope} {budget.target[:64]!r}.", param="target")


def _check_live(actor: Caller) -> None:
    if actor.mode == "test":
        raise PermissionDenied("A test key can't change budgets, which are about live calls; use a live key.")


def _missing(budget_id: str) -> NotFound:
    return NotFound(f"There is no budget {budget_id[:64]!r}.")
