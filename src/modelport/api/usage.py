"""`/v1/usage` and `/v1/requests/{call_id}`: what was consumed and what it cost."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import Annotated

from fastapi import APIRouter, Depends, Query
from fastapi import Path as PathParameter

from modelport.api.auth import PlatformDep, require
from modelport.api.responses import errors
from modelport.api.usage_bodies import ReceiptBody, UsageBody, receipt_body, row_body
from modelport.calls import Caller
from modelport.errors import BadRequest
from modelport.kit.calendar import Bucket, bucket_start
from modelport.kit.clock import parse_rfc3339
from modelport.metering.queries import COLUMNS, UsageQuery

router = APIRouter(tags=["Usage"])
DEFAULT_PERIOD_US = 30 * 86_400_000_000
MAX_GROUPS = 6
_TAG = re.compile(r"[A-Za-z0-9_.-]{1,64}")
# A `+` of an offset that was not escaped arrives as a space.
_LOST_PLUS = re.compile(r"(T[0-9:.]+) (\d\d:?\d\d)$")
ReaderDep = Annotated[Caller, Depends(require("usage:read"))]
_Filter = Annotated[str | None, Query(max_length=200)]


def usage_query(
    platform: PlatformDep,
    start: Annotated[
        str | None, Query(description="RFC 3339 or Unix seconds, inclusive; default: 30 days before `end`.")
    ] = None,
    end: Annotated[str | None, Query(description="RFC 3339 or Unix seconds, exclusive; default: now.")] = None,
    bucket: Annotated[
        str | None,
        Query(
            description="One row per period (UTC) and group; default: one row per group.",
            json_schema_extra={"enum": ["minute", "hour", "day", "month"]},
        ),
    ] = None,
    group_by: Annotated[
        str | None,
        Query(
            description="Comma-separated: `model`, `key`, `project`, `endpoint`, `version`, `backend` (`cache`: "
            "answers given again), `mode`, `status`, or the name of a metadata tag, such as `feature`.",
            examples=["model,feature"],
        ),
    ] = None,
) -> UsageQuery:
    """The period, bucket and groups that were asked for. Raises: BadRequest that names the parameter."""
    now_us = platform.clock.now_us()
    end_us = now_us + 1 if end is None else _instant(end, "end")
    chosen = _bucket(bucket)
    if start is not None:
        start_us = _instant(start, "start")
    else:
        start_us = max(end_us - DEFAULT_PERIOD_US, 0)
        start_us = start_us if chosen is None else bucket_start(start_us, chosen)
    if start_us >= end_us:
        raise BadRequest("start must be before end.", param="start")
    return UsageQuery(start_us, end_us, chosen, _groups(group_by))


def _usage_filters(
    model: _Filter = None,
    key: _Filter = None,
    project: _Filter = None,
    endpoint: _Filter = None,
    mode: Annotated[str | None, Query(description="`live` or `test`.", max_length=8)] = None,
) -> dict[str, str]:
    chosen = {"model": model, "key": key, "project": project, "endpoint": endpoint, "mode": mode}
    return {name: value for name, value in chosen.items() if value is not None}


@router.get(
    "/v1/usage",
    operation_id="get_usage",
    summary="Usage and cost",
    description="Calls, tokens, cost and latencies of this organization, by period and group, the calls that ended "
    "just now among them.",
    responses=errors(400, 401, 403, 429, 503),
)
async def get_usage(
    platform: PlatformDep,
    caller: ReaderDep,
    query: Annotated[UsageQuery, Depends(usage_query)],
    filters: Annotated[dict[str, str], Depends(_usage_filters)],
) -> UsageBody:
    asked = UsageQuery(query.start_us, query.end_us, query.bucket, query.group_by, filters)
    report = await platform.usage.report(caller.organization_id, asked)
    return UsageBody(object="list", data=[row_body(row) for row in report.rows], totals=row_body(report.totals))


@router.get(
    "/v1/requests/{call_id}",
    operation_id="get_request",
    summary="A call's receipt",
    description="What one call consumed, what served it, and the lines that make up its cost.",
    responses=errors(401, 403, 404, 429, 503),
)
async def get_request(
    call_id: Annotated[str, PathParameter(description="The answer's `x-request-id`.")],
    platform: PlatformDep,
    caller: ReaderDep,
) -> ReceiptBody:
    return receipt_body(await platform.usage.get_receipt(caller.organization_id, call_id))


def _instant(text: str, name: str) -> int:
    try:
        if text.isascii() and text.isdigit():
            return parse_rfc3339(datetime.fromtimestamp(int(text), UTC).isoformat())
        found = parse_rfc3339(_LOST_PLUS.sub(r"\1+\2", text))
    except (ValueError, OverflowError, OSError):
        found = -1
    if found < 0:
        raise BadRequest(f"{name} must be an RFC 3339 time, such as 2026-11-01T00:00:00Z, or Unix seconds.", param=name)
    return found


def _bucket(text: str | None) -> Bucket | None:
    match text:
        case None | "minute" | "hour" | "day" | "month":
            return text
    raise BadRequest("bucket must be minute, hour, day or month.", param="bucket")


def _groups(text: str | None) -> tuple[str, ...]:
    names = tuple(dict.fromkeys(part.strip() for part in text.split(","))) if text else ()
    if len(names) > MAX_GROUPS:
        raise BadRequest(f"group_by takes at most {MAX_GROUPS} names.", param="group_by")
    for name in names:
        if name not in COLUMNS and not _TAG.fullmatch(name):
            raise BadRequest(
                f"group_by takes {', '.join(COLUMNS)} and names of metadata tags (letters, digits, '_', '.', '-').",
                param="group_by",
            )
    return names
