"""`/v1/admin/…`: what operators see of the installation, across all organizations."""

from __future__ import annotations

from typing import Annotated, Literal

from fastapi import APIRouter, Depends
from pydantic import BaseModel, ConfigDict, Field

from modelport.api.auth import PlatformDep, require
from modelport.api.responses import errors
from modelport.calls import Caller
from modelport.routing.breaker import BreakerState
from modelport.routing.service import CircuitView

router = APIRouter(tags=["Operation"])
OperatorDep = Annotated[Caller, Depends(require("admin"))]
_STATES: dict[BreakerState, Literal["closed", "half_open", "open"]] = {
    BreakerState.CLOSED: "closed",
    BreakerState.HALF_OPEN: "half_open",
    BreakerState.OPEN: "open",
}


class CircuitBody(BaseModel):
    """The breaker of one model of one upstream. Counts are this worker's own, of its current window."""

    upstream: str
    upstream_model: str
    state: Literal["closed", "half_open", "open"] = Field(
        description="`open`: it is left alone. `half_open`: one call at a time is let through."
    )
    calls: int = Field(description="That ended within the breaker's window and said something about it.")
    failed: int
    slow: int
    outstanding: int = Field(description="Attempts under way now.")
    latency_ms: float | None = Field(description="Moving average until output begins; null: nothing heard lately.")
    reopens_in_s: float = Field(description="Until a call is let through; 0 when it is closed.")


class CircuitList(BaseModel):
    """Every target that has a breaker, in the order of the configuration."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "object": "list",
                    "data": [
                        {
                            "upstream": "primary",
                            "upstream_model": "gpt-4o-mini",
                            "state": "open",
                            "calls": 0,
                            "failed": 0,
                            "slow": 0,
                            "outstanding": 0,
                            "latency_ms": None,
                            "reopens_in_s": 7.4,
                        }
                    ],
                }
            ]
        }
    )

    object: Literal["list"]
    data: list[CircuitBody]


@router.get(
    "/v1/admin/circuits",
    operation_id="list_circuits",
    summary="Circuits",
    description="Which upstream targets are left alone because they failed or were slow, and until when.",
    responses=errors(401, 403, 429, 503),
)
async def list_circuits(platform: PlatformDep, _operator: OperatorDep) -> CircuitList:
    views = platform.corridor.router.circuits()
    return CircuitList(object="list", data=[_circuit_body(view) for view in views])


def _circuit_body(view: CircuitView) -> CircuitBody:
    return CircuitBody(
        upstream=view.upstream,
        upstream_model=view.model,
        state=_STATES[view.state],
        calls=view.calls,
        failed=view.failed,
        slow=view.slow,
        outstanding=view.outstanding,
        latency_ms=None if view.latency_s is None else round(view.latency_s * 1000, 3),
        reopens_in_s=round(view.reopens_s, 3),
    )
