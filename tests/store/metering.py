"""What the tests of metering share: an organization's calls, and a ledger on a database of one's own."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from modelport.calls import Call, Caller, Operation
from modelport.db.engine import Database, open_database
from modelport.db.migrate import migrate
from modelport.kit.clock import SystemClock
from modelport.metering.ledger import Ledger
from modelport.metering.model import UsageEvent
from modelport.settings import MeteringSettings

START_US = 1_767_225_600_000_000  # 2026-01-01T00:00:00Z


def caller(organization: str = "org_alice", *, key: str = "key_1") -> Caller:
    return Caller(
        organization_id=organization,
        project_id="proj_1",
        key_id=key,
        mode="live",
        scopes=frozenset({"inference", "usage:read"}),
        plan_id="plan_free",
    )


def call(id: str, *, organization: str = "org_alice", metadata: dict[str, str] | None = None) -> Call:
    return Call(
        id=id,
        caller=caller(organization),
        endpoint="/v1/chat/completions",
        operation=Operation.CHAT,
        model="sandbox",
        request=None,
        fields={},
        started_us=START_US,
        started_s=0.0,
        deadline_s=60.0,
        metadata=metadata or {},
    )


def event(id: str, **changes: object) -> UsageEvent:
    """A successful call of Alice's, or what `changes` makes of it."""
    facts: dict[str, object] = {
        "call_id": id,
        "organization_id": "org_alice",
        "project_id": "proj_1",
        "key_id": "key_1",
        "mode": "live",
        "endpoint": "/v1/chat/completions",
        "model": "sandbox",
        "version": "1",
        "backend": "sandbox",
        "stream": False,
        "status": 200,
        "error_code": None,
        "input_tokens": 100,
        "output_tokens": 20,
        "cached_tokens": 10,
        "images": 0,
        "exact": True,
        "cost_nanos": 1_500,
        "price_id": None,
        "discount_basis_points": 0,
        "started_us": START_US,
        "latency_us": 250_000,
        "first_token_us": 40_000,
        "metadata": {},
    }
    return UsageEvent(**{**facts, **changes})  # type: ignore[arg-type]


@asynccontextmanager
async def database(url: str, data_dir: Path) -> AsyncIterator[Database]:
    db = open_database(url, data_dir=data_dir, pool_size=2)
    await migrate(db)
    try:
        yield db
    finally:
        await db.close()


@asynccontextmanager
async def ledger(db: Database, data_dir: Path, **settings: object) -> AsyncIterator[Ledger]:
    chosen = MeteringSettings(**settings)  # type: ignore[arg-type]
    made = Ledger(db, clock=SystemClock(), settings=chosen, directory=data_dir / "journal")
    await made.start()
    try:
        yield made
    finally:
        await made.close_all()
