"""`GET /v1/limits`: what is left, now, of the limits and budgets that concern the asking key."""

from __future__ import annotations

from typing import Any, Literal

from fastapi import APIRouter
from pydantic import BaseModel, ConfigDict, Field

from modelport.api.auth import PlatformDep
from modelport.api.budgets import BillingDep, BudgetBody, budget_body
from modelport.api.responses import errors
from modelport.limits.rules import Scope, Unit, describe
from modelport.state.protocol import Level

router = APIRouter(tags=["Budgets"])

_LEVEL: dict[str, Any] = {
    "name": "rpm",
    "scope": "organization",
    "unit": "requests",
    "limit": 600,
    "remaining": 598,
    "window_s": 60,
    "reset_s": 58.204,
}


class LimitBody(BaseModel):
    """One limit as it stands."""

    model_config = ConfigDict(json_schema_extra={"examples": [_LEVEL]})

    name: str = Field(description="As the `RateLimit` header names it.")
    scope: Scope
    unit: Unit
    limit: int
    remaining: int
    window_s: int | None = Field(description="The sliding window; null for calls at one time.")
    reset_s: float = Field(description="In so many seconds all of it is free again, if nothing else comes.")


class LimitsBody(BaseModel):
    """What is left."""

    object: Literal["limits"]
    limits: list[LimitBody]
    budgets: list[BudgetBody]


@router.get(
    "/v1/limits",
    operation_id="get_limits",
    summary="Get what is left",
    description="The limits of your organization and of the key you ask with, and the budgets that concern its calls "
    "(those of tags among them), as they stand now. A test key has limits of its own and no budgets.",
    responses=errors(401, 403, 429, 503),
)
async def get_limits(platform: PlatformDep, caller: BillingDep) -> LimitsBody:
    levels = await platform.limiter.levels(caller)
    standings = await platform.budgets.standings(caller.budgets)
    return LimitsBody(
        object="limits",
        limits=[_limit_body(level) for level in levels],
        budgets=[budget_body(standing) for standing in standings],
    )


def _limit_body(level: Level) -> LimitBody:
    bucket = level.bucket
    scope, unit = describe(bucket)
    return LimitBody(
        name=bucket.name,
        scope=scope,
        unit=unit,
        limit=bucket.limit,
        remaining=level.remaining,
        window_s=bucket.window_s or None,
        reset_s=round(level.reset_s, 3),
    )
