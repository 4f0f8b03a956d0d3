"""`/v1/budgets`: create, list, read, change and delete the organization's budgets."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Path, Query
from msgspec import UNSET
from pydantic import BaseModel, ConfigDict, Field

from modelport.api.auth import PlatformDep, require
from modelport.api.responses import errors
from modelport.budgets.model import BudgetChange, NewBudget, Standing
from modelport.calls import BudgetScope, Caller, Period
from modelport.kit.clock import rfc3339
from modelport.kit.money import format_usd

router = APIRouter(tags=["Budgets"])

_ID = "budget_0199d1c2a7f07c3e8f6b5a4d3c2b1a09"
_FIELDS: dict[str, Any] = {
    "id": _ID,
    "object": "budget",
    "scope": "key",
    "target": "key_0199d1c2a7f07c3e8f6b5a4d3c2b1a09",
    "period": "month",
    "soft_limit_usd": "80.00",
    "hard_limit_usd": "100.00",
    "spent_usd": "12.304512",
    "reserved_usd": "0.0125",
    "remaining_usd": "87.682988",
    "period_start": "2026-11-01T00:00:00Z",
    "period_end": "2026-12-01T00:00:00Z",
    "created_at": "2026-11-21T09:30:00Z",
}
# Money is text, since a JSON number may be a binary fraction by the time it is read.
_Usd = Annotated[str, Field(max_length=40, strict=True, examples=["100.00"])]


class BudgetCreate(BaseModel):
    """A new budget: a soft limit, a hard limit, or both."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={
            "examples": [
                {"scope": "tag", "target": "feature=chat", "period": "month", "hard_limit_usd": "100.00"},
            ]
        },
    )

    scope: BudgetScope = Field(description="Whose calls it counts.")
    target: Annotated[str, Field(min_length=1, max_length=600)] | None = Field(
        None, description="A project's or key's id, or a metadata tag as `name=value`; null: the organization itself."
    )
    period: Period = Field(
        "month", description="A day or month of UTC, or `total`: everything from the budget's creation on."
    )
    soft_limit_usd: _Usd | None = Field(None, description="Above it somebody is told, once in each period.")
    hard_limit_usd: _Usd | None = Field(None, description="Never spent more than this; calls are refused before.")


class BudgetPatch(BaseModel):
    """What is to be different; a member that is left out stays as it is, null lifts the limit."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": [{"hard_limit_usd": "250.00"}]})

    soft_limit_usd: _Usd | None = None
    hard_limit_usd: _Usd | None = None


class BudgetBody(BaseModel):
    """A budget in its present period. Amounts are decimal strings of dollars, exact to the nano-dollar."""

    model_config = ConfigDict(json_schema_extra={"examples": [_FIELDS]})

    id: str
    object: Literal["budget"]
    scope: BudgetScope
    target: str
    period: Period
    soft_limit_usd: str | None
    hard_limit_usd: str | None
    spent_usd: str = Field(description="What calls of this period cost.")
    reserved_usd: str = Field(description="What calls that run now may cost at most.")
    remaining_usd: str | None = Field(description="The hard limit less both; null without one.")
    period_start: str
    period_end: str | None = Field(description="When the next period begins; null: never.")
    created_at: str


class BudgetList(BaseModel):
    """A page of budgets."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [{"object": "list", "data": [_FIELDS], "first_id": _ID, "last_id": _ID, "has_more": False}]
        }
    )

    object: Literal["list"]
    data: list[BudgetBody]
    first_id: str | None
    last_id: str | None
    has_more: bool


class BudgetDeleted(BaseModel):
    """The budget is gone."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"id": _ID, "object": "budget", "deleted": True}]})

    id: str
    object: Literal["budget"]
    deleted: Literal[True]


BillingDep = Annotated[Caller, Depends(require("billing"))]
BudgetId = Annotated[str, Path(description="The budget's id, `budget_…`.", max_length=64, examples=[_ID])]


@router.post(
    "/v1/budgets",
    status_code=201,
    operation_id="create_budget",
    summary="Create a budget",
    description="It holds from the next call on, on every server. What was spent in its period before counts.",
    responses=errors(400, 401, 403, 404, 409, 422, 429, 503),
)
async def create_budget(body: BudgetCreate, platform: PlatformDep, caller: BillingDep) -> BudgetBody:
    new = NewBudget(body.scope, body.target, body.period, body.soft_limit_usd, body.hard_limit_usd)
    return budget_body(await platform.budgets.create(caller, new))


@router.get(
    "/v1/budgets",
    operation_id="list_budgets",
    summary="List budgets",
    description="The organization's budgets, each as it stands in its present period.",
    responses=errors(400, 401, 403, 429, 503),
)
async def list_budgets(
    platform: PlatformDep,
    caller: BillingDep,
    after: Annotated[str | None, Query(description="The id behind which the page begins.", max_length=64)] = None,
    limit: Annotated[int, Query(ge=1, le=100, description="How many at most.")] = 20,
    order: Annotated[Literal["asc", "desc"], Query(description="By creation; newest first by default.")] = "desc",
) -> BudgetList:
    page = await platform.budgets.list_page(caller, after=after, limit=limit, order=order)
    data = [budget_body(standing) for standing in page.budgets]
    first, last = (data[0].id, data[-1].id) if data else (None, None)
    return BudgetList(object="list", data=data, first_id=first, last_id=last, has_more=page.has_more)


@router.get(
    "/v1/budgets/{budget_id}",
    operation_id="get_budget",
    summary="Get a budget",
    description="One of the organization's budgets, as it stands in its present period.",
    responses=errors(401, 403, 404, 429, 503),
)
async def get_budget(budget_id: BudgetId, platform: PlatformDep, caller: BillingDep) -> BudgetBody:
    return budget_body(await platform.budgets.get(caller, budget_id))


@router.patch(
    "/v1/budgets/{budget_id}",
    operation_id="update_budget",
    summary="Change a budget's limits",
    description="They hold from the next call on, on every server. Scope, target and period stay what they are.",
    responses=errors(400, 401, 403, 404, 429, 503),
)
async def update_budget(
    budget_id: BudgetId, body: BudgetPatch, platform: PlatformDep, caller: BillingDep
) -> BudgetBody:
    sent = body.model_fields_set
    change = BudgetChange(
        soft_limit_usd=body.soft_limit_usd if "soft_limit_usd" in sent else UNSET,
        hard_limit_usd=body.hard_limit_usd if "hard_limit_usd" in sent else UNSET,
    )
    return budget_body(await platform.budgets.update(caller, budget_id, change))


@router.delete(
    "/v1/budgets/{budget_id}",
    operation_id="delete_budget",
    summary="Delete a budget",
    description="Nothing is held to it from the next call on, on every server.",
    responses=errors(401, 403, 404, 429, 503),
)
async def delete_budget(budget_id: BudgetId, platform: PlatformDep, caller: BillingDep) -> BudgetDeleted:
    await platform.budgets.delete(caller, budget_id)
    return BudgetDeleted(id=budget_id, object="budget", deleted=True)


def budget_body(standing: Standing) -> BudgetBody:
    """The budget as it is answered."""
    budget = standing.budget
    left = None if budget.hard_nanos is None else budget.hard_nanos - standing.spent_nanos - standing.reserved_nanos
    return BudgetBody(
        id=budget.id,
        object="budget",
        scope=budget.scope,
        target=budget.target,
        period=budget.period,
        soft_limit_usd=_usd(budget.soft_nanos),
        hard_limit_usd=_usd(budget.hard_nanos),
        spent_usd=format_usd(standing.spent_nanos),
        reserved_usd=format_usd(standing.reserved_nanos),
        remaining_usd=None if left is None else format_usd(max(left, 0)),
        period_start=rfc3339(standing.start_us),
        period_end=None if standing.end_us is None else rfc3339(standing.end_us),
        created_at=rfc3339(budget.created_us),
    )


def _usd(nanos: int | None) -> str | None:
    return None if nanos is None else format_usd(nanos)
