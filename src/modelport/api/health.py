"""Liveness, readiness, and each dependency's state."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, Field

from modelport import __version__
from modelport.api.auth import PlatformDep
from modelport.api.exchange import read_secret
from modelport.api.platform import Platform
from modelport.api.problems import retry_headers
from modelport.api.responses import errors
from modelport.backends.protocol import Health, Status
from modelport.catalog.service import model_health
from modelport.errors import ModelportError, PermissionDenied, Unavailable
from modelport.observe.metrics import CONTENT_TYPE

router = APIRouter(tags=["Health"])
_CHECK_TIMEOUT_S = 2.0
_LOOPBACK = ("127.0.0.1", "::1")


class Check(BaseModel):
    """One dependency."""

    status: str = Field(description="`ok`, `loading` or `failed`.")
    detail: str = Field(description="What is wrong; empty when nothing is.")


class HealthBody(BaseModel):
    """The platform in one word, and each part it depends on."""

    status: str = Field(description="`ok`, `degraded` (a part failed, calls may still pass) or `draining`.")
    version: str
    database: Check
    state: Check
    models: dict[str, Check]


@router.get("/livez", operation_id="livez", summary="Is the process alive", description="200 while it runs.")
async def livez() -> dict[str, str]:
    return {"status": "ok"}


@router.get(
    "/readyz",
    operation_id="readyz",
    summary="Can it take calls",
    description="503 while it drains, or while the database or the shared state is away.",
    responses=errors(503),
)
async def readyz(platform: PlatformDep, response: Response) -> HealthBody:
    body = await health_body(platform)
    if body.status == "draining" or "failed" in (body.database.status, body.state.status):
        response.status_code = 503
        response.raw_headers.extend(retry_headers(Unavailable()))
    return body


@router.get(
    "/health",
    operation_id="health",
    summary="Health of each part",
    description="Database, shared state and every model, each with what is wrong with it. Always 200.",
)
async def health(platform: PlatformDep) -> HealthBody:
    return await health_body(platform)


@router.get(
    "/metrics",
    operation_id="prometheus_metrics",
    summary="Metrics for Prometheus",
    description="The text exposition format. Open to this machine; from elsewhere an operator's key is needed.",
    responses={200: {"content": {"text/plain": {"example": "modelport_calls_total 42.0"}}}, **errors(401, 403)},
    response_class=Response,
)
async def prometheus(request: Request, platform: PlatformDep) -> Response:
    if request.client is None or request.client.host not in _LOOPBACK:
        secret = read_secret(request.headers.get("authorization"), request.headers.get("x-api-key"))
        caller = await platform.keyring.authenticate(secret, address=request.client.host if request.client else "")
        if not caller.operator:
            raise PermissionDenied("Metrics are for operators' keys.")
    return Response(platform.metrics.render(), media_type=CONTENT_TYPE.decode())


async def health_body(platform: Platform) -> HealthBody:
    """Ask every dependency at once, each for at most two seconds."""
    database, state = await asyncio.gather(_check(platform.db.ping()), _check(platform.state.ping()))
    models = {model.id: _model_check(model_health(model)) for model in platform.catalog.models.values()}
    failed = any(check.status == "failed" for check in (database, state, *models.values()))
    status = "draining" if platform.phase.draining else "degraded" if failed else "ok"
    return HealthBody(status=status, version=__version__, database=database, state=state, models=models)


async def _check(question: Awaitable[None]) -> Check:
    try:
        await asyncio.wait_for(question, _CHECK_TIMEOUT_S)
    except ModelportError as error:
        return Check(status="failed", detail=error.message)
    except (OSError, TimeoutError):
        return Check(status="failed", detail="It does not answer.")
    return Check(status="ok", detail="")


def _model_check(health: Health) -> Check:
    return Check(status="ok" if health.status is Status.READY else health.status.value, detail=health.detail)
