"""What budgets are asked for and answered with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from msgspec import UNSET, UnsetType

from modelport.calls import Budget, BudgetScope, Period

EventType = Literal["billing.limit_approaching", "billing.limit_reached"]


@dataclass(frozen=True, slots=True)
class NewBudget:
    """What is asked for. `target` None is the organization itself; limits are decimal strings of dollars."""

    scope: BudgetScope
    target: str | None
    period: Period
    soft_limit_usd: str | None
    hard_limit_usd: str | None


@dataclass(frozen=True, slots=True)
class BudgetChange:
    """What is to be different; UNSET stays as it is, None lifts the limit."""

    soft_limit_usd: str | UnsetType | None = UNSET
    hard_limit_usd: str | UnsetType | None = UNSET


@dataclass(frozen=True, slots=True)
class Standing:
    """A budget in its present period: what was spent, and what calls that run now have reserved."""

    budget: Budget
    spent_nanos: int
    reserved_nanos: int
    start_us: int
    end_us: int | None


@dataclass(frozen=True, slots=True)
class BudgetPage:
    """A page of budgets; `has_more` when others follow in the same order."""

    budgets: list[Standing]
    has_more: bool


@dataclass(frozen=True, slots=True)
class BudgetEvent:
    """Somebody is to be told, once in a period: the soft limit is passed, or the hard one refused a call."""

    type: EventType
    budget: Budget
    spent_nanos: int
    start_us: int
    end_us: int | None
