"""`GET /v1/deprecations`: what has ended or is to end."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Request
from pydantic import BaseModel, Field

from modelport.api.auth import PlatformDep, require
from modelport.api.deprecation_headers import LIST_PATH
from modelport.api.responses import errors
from modelport.calls import Caller
from modelport.catalog.deprecation import Deprecation
from modelport.kit.clock import rfc3339

router = APIRouter(tags=["Models"])


class DeprecationBody(BaseModel):
    """When something ends, and what to use instead."""

    deprecated_at: str
    sunset_at: str | None = Field(description="From then on it is answered with 410; null: no end is set.")
    successor: str | None
    link: str | None


class DeprecationRow(DeprecationBody):
    id: str = Field(examples=["model:iris"])
    object: str = Field(description="Always `deprecation`.", examples=["deprecation"])
    kind: str = Field(description="`route`, `model` or `version`.", examples=["model"])
    name: str = Field(description="A path, a model's id, or `model@version`.", examples=["iris"])
    stage: str = Field(description="`announced`, `deprecated` or `gone`.", examples=["deprecated"])


class DeprecationList(BaseModel):
    object: str = Field(description="Always `list`.", examples=["list"])
    data: list[DeprecationRow]
    first_id: str | None
    last_id: str | None
    has_more: bool = False


def deprecation_body(row: Deprecation | None) -> DeprecationBody | None:
    """A retirement as the API tells it, or None where there is none."""
    if row is None:
        return None
    return DeprecationBody(
        deprecated_at=rfc3339(row.deprecated_at_s * 1_000_000),
        sunset_at=None if row.sunset_at_s is None else rfc3339(row.sunset_at_s * 1_000_000),
        successor=row.successor or None,
        link=row.link or None,
    )


@router.get(
    LIST_PATH,
    operation_id="list_deprecations",
    summary="List deprecations",
    description="Every route, and every model and version that this key may call, which has ended or is to end.",
    responses=errors(401, 403, 429),
)
async def list_deprecations(
    request: Request, platform: PlatformDep, caller: Annotated[Caller, Depends(require("models:read"))]
) -> DeprecationList:
    now_us = platform.clock.now_us()
    versions = [version for model in platform.catalog.list_for(caller) for version in model.versions.values()]
    # The versions of a model that ends as a whole share its retirement.
    found = dict.fromkeys([*request.app.state.deprecations.rows, *(version.deprecation for version in versions)])
    data = [_row(row, now_us) for row in found if row is not None]
    first, last = (data[0].id, data[-1].id) if data else (None, None)
    return DeprecationList(object="list", data=data, first_id=first, last_id=last)


def _row(row: Deprecation, now_us: int) -> DeprecationRow:
    dates = deprecation_body(row)
    assert dates is not None
    return DeprecationRow(
        id=f"{row.kind}:{row.name}",
        object="deprecation",
        kind=row.kind,
        name=row.name,
        stage=row.stage(now_us).value,
        **dates.model_dump(),
    )
