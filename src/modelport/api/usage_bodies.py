"""How usage and receipts are written: the response models, and what fills them."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from modelport.kit.clock import rfc3339
from modelport.kit.money import format_usd
from modelport.metering.model import Attempt
from modelport.metering.queries import Durations, UsageRow
from modelport.metering.rules import PriceLine
from modelport.metering.service import Receipt

_UNITS = {
    "input_tokens": "token",
    "cached_tokens": "token",
    "output_tokens": "token",
    "request": "request",
    "images": "image",
    "microseconds": "microsecond",
    "discount": "basis point",
    "adjustment": "adjustment",
}


class DurationsBody(BaseModel):
    """Milliseconds, percentiles at most 1 % from the truth; null where nothing was measured."""

    mean: float | None
    p50: float | None
    p95: float | None
    p99: float | None


class UsageRowBody(BaseModel):
    """The calls of one group that began in one period (`start` inclusive, `end` exclusive)."""

    start: str
    end: str
    group: dict[str, str | None] = Field(description="The value of each `group_by`; null: calls without that tag.")
    calls: int
    succeeded: int = Field(description="Answered with a status below 400.")
    failed: int = Field(description="All others, hang-ups among them.")
    input_tokens: int = Field(description="Cached ones among them.")
    output_tokens: int
    cached_tokens: int
    cost_usd: str = Field(description="Dollars as a decimal string, exact.")
    latency_ms: DurationsBody = Field(description="Of the calls that succeeded.")
    first_token_ms: DurationsBody = Field(description="Of those among them that have a first token.")


_ROW_EXAMPLE: dict[str, Any] = {
    "start": "2026-11-01T00:00:00Z",
    "end": "2026-11-02T00:00:00Z",
    "group": {"model": "smollm2-135m-instruct"},
    "calls": 12,
    "succeeded": 11,
    "failed": 1,
    "input_tokens": 480,
    "output_tokens": 1210,
    "cached_tokens": 64,
    "cost_usd": "0.000412",
    "latency_ms": {"mean": 812.4, "p50": 790, "p95": 1210, "p99": 1230},
    "first_token_ms": {"mean": 64.1, "p50": 61.2, "p95": 88.9, "p99": 90.1},
}


class UsageBody(BaseModel):
    """Usage by period and group; periods and groups without calls are left out."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [{"object": "list", "data": [_ROW_EXAMPLE], "totals": {**_ROW_EXAMPLE, "group": {}}}]
        }
    )

    object: Literal["list"]
    data: list[UsageRowBody]
    totals: UsageRowBody


class PriceLineBody(BaseModel):
    """One line of a receipt."""

    item: str = Field(description="`input_tokens`, `cached_tokens`, `output_tokens`, `request`, `images`, …")
    quantity: int
    unit: str
    unit_price_usd: str = Field(description="The price of `per` units.")
    per: int
    amount_usd: str


class AttemptBody(BaseModel):
    """One try at answering the call. Only the one that answered is charged."""

    backend: str
    upstream: str | None = Field(
        description="The server that was asked; null for a local model, and where the first attempt answered."
    )
    upstream_model: str | None = Field(description="Its own name for the model.")
    model: str
    version: str
    status: int
    error_code: str | None = Field(description="`slower`: another attempt began to answer first.")
    started_at: str
    latency_ms: float
    first_token_ms: float | None
    why: str | None = Field(
        description="What the attempt before it failed of (`failed`, `timeout`, `rate_limit`, …), or `hedge`: it was "
        "begun beside a slow one. Null for the first."
    )


class ReceiptBody(BaseModel):
    """What one call consumed, what it cost and why. The lines add up to `cost_usd` exactly."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "id": "req_0199d1c2a7f07c3e8f6b5a4d3c2b1a09",
                    "object": "request",
                    "created_at": "2026-11-01T10:00:00Z",
                    "project_id": "proj_0199d1c2a7f07c3e8f6b5a4d3c2b1a09",
                    "key_id": "key_0199d1c2a7f07c3e8f6b5a4d3c2b1a09",
                    "mode": "live",
                    "endpoint": "/v1/chat/completions",
                    "model": "gpt-demo",
                    "version": "1",
                    "stream": True,
                    "status": 200,
                    "error_code": None,
                    "input_tokens": 1000,
                    "output_tokens": 200,
                    "cached_tokens": 0,
                    "images": 0,
                    "exact": True,
                    "latency_ms": 812.4,
                    "first_token_ms": 64.1,
                    "metadata": {"feature": "chat"},
                    "cost_usd": "0.00027",
                    "price_id": "price_0199d1c2a7f07c3e8f6b5a4d3c2b1a09",
                    "discount_basis_points": 0,
                    "lines": [
                        {
                            "item": "input_tokens",
                            "quantity": 1000,
                            "unit": "token",
                            "unit_price_usd": "0.15",
                            "per": 1000000,
                            "amount_usd": "0.00015",
                        },
                        {
                            "item": "output_tokens",
                            "quantity": 200,
                            "unit": "token",
                            "unit_price_usd": "0.60",
                            "per": 1000000,
                            "amount_usd": "0.00012",
                        },
                    ],
                    "attempts": [
                        {
                            "backend": "openai",
                            "upstream": "primary",
                            "upstream_model": "gpt-4o-mini",
                            "model": "gpt-demo",
                            "version": "1",
                            "status": 200,
                            "error_code": None,
                            "started_at": "2026-11-01T10:00:00Z",
                            "latency_ms": 812.4,
                            "first_token_ms": 64.1,
                            "why": None,
                        }
                    ],
                }
            ]
        }
    )

    id: str = Field(description="The answer's `x-request-id`.")
    object: Literal["request"]
    created_at: str
    project_id: str
    key_id: str
    mode: str
    endpoint: str
    model: str
    version: str
    stream: bool
    status: int = Field(description="The answer's status; 499 when the client hung up.")
    error_code: str | None
    input_tokens: int
    output_tokens: int
    cached_tokens: int
    images: int
    exact: bool = Field(description="False where tokens were counted from the stream, since nobody reported them.")
    latency_ms: float
    first_token_ms: float | None
    metadata: dict[str, str]
    cost_usd: str
    price_id: str | None
    discount_basis_points: int
    lines: list[PriceLineBody]
    attempts: list[AttemptBody]


def row_body(row: UsageRow) -> UsageRowBody:
    """One row of a report."""
    return UsageRowBody(
        start=rfc3339(row.start_us),
        end=rfc3339(row.end_us),
        group=row.group,
        calls=row.succeeded + row.failed,
        succeeded=row.succeeded,
        failed=row.failed,
        input_tokens=row.input_tokens,
        output_tokens=row.output_tokens,
        cached_tokens=row.cached_tokens,
        cost_usd=format_usd(row.cost_nanos),
        latency_ms=_durations_body(row.latency),
        first_token_ms=_durations_body(row.first_token),
    )


def _durations_body(found: Durations) -> DurationsBody:
    return DurationsBody(
        mean=_ms(found.mean_us), p50=_ms(found.p50_us), p95=_ms(found.p95_us), p99=_ms(found.p99_us)
    )  # fmt: skip


def _ms(us: int | None) -> float | None:
    return None if us is None else us / 1000


def _line_body(line: PriceLine) -> PriceLineBody:
    return PriceLineBody(
        item=line.item,
        quantity=line.quantity,
        unit=_UNITS[line.item],
        unit_price_usd=format_usd(line.unit_nanos),
        per=line.per,
        amount_usd=format_usd(line.amount_nanos),
    )


def receipt_body(receipt: Receipt) -> ReceiptBody:
    """One call's receipt."""
    event = receipt.event
    return ReceiptBody(
        id=event.call_id,
        object="request",
        created_at=rfc3339(event.started_us),
        project_id=event.project_id,
        key_id=event.key_id,
        mode=event.mode,
        endpoint=event.endpoint,
        model=event.model,
        version=event.version,
        stream=event.stream,
        status=event.status,
        error_code=event.error_code,
        input_tokens=event.input_tokens,
        output_tokens=event.output_tokens,
        cached_tokens=event.cached_tokens,
        images=event.images,
        exact=event.exact,
        latency_ms=event.latency_us / 1000,
        first_token_ms=_ms(event.first_token_us),
        metadata=event.metadata,
        cost_usd=format_usd(event.cost_nanos),
        price_id=event.price_id,
        discount_basis_points=event.discount_basis_points,
        lines=[_line_body(line) for line in receipt.lines],
        attempts=[_attempt_body(attempt) for attempt in receipt.attempts],
    )


def _attempt_body(attempt: Attempt) -> AttemptBody:
    return AttemptBody(
        backend=attempt.backend,
        upstream=attempt.upstream or None,
        upstream_model=attempt.upstream_model or None,
        model=attempt.model,
        version=attempt.version,
        status=attempt.status,
        error_code=attempt.error_code,
        started_at=rfc3339(attempt.started_us),
        latency_ms=attempt.latency_us / 1000,
        first_token_ms=_ms(attempt.first_token_us),
        why=attempt.why,
    )
