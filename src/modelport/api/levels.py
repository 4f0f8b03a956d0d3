"""`/v1/metrics` and `/v1/admin/slo`: how the whole installation is doing, and what became of what was promised."""

from __future__ import annotations

from typing import Annotated, Literal

from fastapi import APIRouter, Query

from modelport.api.admin import OperatorDep
from modelport.api.auth import PlatformDep
from modelport.api.level_bodies import SloList, SummaryBody, slo_body, summary_body
from modelport.api.responses import errors
from modelport.errors import BadRequest
from modelport.slo.model import WINDOWS

router = APIRouter(tags=["Operation"])
_BY_NAME = {window.name: window for window in WINDOWS}
WindowQuery = Annotated[
    str,
    Query(description="The last five minutes, hour or thirty days.", json_schema_extra={"enum": list(_BY_NAME)}),
]


@router.get(
    "/v1/metrics",
    operation_id="get_metrics",
    summary="How it is doing",
    description="Calls, latencies, errors, cache hits and versions of every model, and whether the service levels "
    "hold: of all workers and instances, a few seconds old. For dashboards of your own; Prometheus reads `/metrics`.",
    responses=errors(400, 401, 403, 429, 503),
)
async def get_metrics(platform: PlatformDep, _operator: OperatorDep, window: WindowQuery = "5m") -> SummaryBody:
    chosen = _BY_NAME.get(window)
    if chosen is None:
        raise BadRequest(f"window must be {', '.join(_BY_NAME)}.", param="window")
    tallies = await platform.levels.windows((chosen,))
    return summary_body(chosen, tallies[chosen], platform.levels.promises(tallies))


@router.get(
    "/v1/admin/slo",
    operation_id="list_service_levels",
    summary="Service levels",
    description="Each promise of the `slo` settings for each model and endpoint that was called, and of the minutes "
    "in which the platform was up: what it came to in each window, and how fast its allowance is being spent.",
    responses=errors(400, 401, 403, 429, 503),
)
async def list_service_levels(
    platform: PlatformDep,
    _operator: OperatorDep,
    model: Annotated[str | None, Query(max_length=200, description="Only of this model.")] = None,
    status: Annotated[
        Literal["met", "missed", "burning", "no_data"] | None, Query(description="Only those that stand so.")
    ] = None,
) -> SloList:
    found = [slo_body(promise) for promise in await platform.levels.report() if model in (None, promise.model)]
    return SloList(object="list", data=[row for row in found if status in (None, row.status)])
