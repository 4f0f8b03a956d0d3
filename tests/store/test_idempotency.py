"""A request under a key runs once: whoever else claims it, whatever process dies, whichever tenant asks."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from modelport.db.engine import Database, open_database
from modelport.errors import IdempotencyInFlight, IdempotencyMismatch, IdempotencyNotKept, Unavailable
from modelport.kit.clock import ManualClock
from modelport.replay.idempotency.model import Claim
from modelport.replay.idempotency.rules import claim_of
from modelport.replay.idempotency.service import PRUNE_ROWS, Idempotency
from modelport.settings import IdempotencySettings
from tests.store.metering import caller

LEASE_S, KEEP_S = 15.0, 86_400.0


@dataclass
class Gateways:
    """Processes on one database, as far as claims go: each has its own claims. Their leases are renewed by hand."""

    one: Idempotency
    two: Idempotency
    clock: ManualClock
    db: Database
    lost: list[str] = field(default_factory=list)

    async def claim(self, where: Idempotency, claim: Claim) -> bytes | None:
        return await where.claim(claim, on_lost=lambda: self.lost.append(claim.call_id))


@pytest.fixture
async def gateways(any_database: Database, database_url: str, tmp_path: Path) -> AsyncIterator[Gateways]:
    clock = ManualClock()
    settings = IdempotencySettings(lease_s=LEASE_S, keep_s=KEEP_S)
    async with AsyncExitStack() as stack:
        other = open_database(database_url, data_dir=tmp_path, pool_size=2)
        stack.push_async_callback(other.close)
        one, two = (Idempotency(db, clock=clock, settings=settings) for db in (any_database, other))
        yield Gateways(one, two, clock, any_database)


def claim(call_id: str, *, key: str = "k", body: bytes = b"{}", who: str = "org_alice") -> Claim:
    return claim_of(caller(who), key, method="POST", path="/v1/x", body=body, call_id=call_id)


async def test_a_repeat_gets_the_answer_from_every_process(gateways: Gateways) -> None:
    assert await gateways.claim(gateways.one, claim("req_1")) is None
    await gateways.one.keep(claim("req_1"), b"answer")
    for where in (gateways.one, gateways.two):
        assert await gateways.claim(where, claim("req_2")) == b"answer"


async def test_of_many_that_come_at_once_one_runs(gateways: Gateways) -> None:
    claims = [
        gateways.claim(where, claim(f"req_{number}_{place}"))
        for number in range(50)
        for place, where in enumerate((gateways.one, gateways.two))
    ]
    results = await asyncio.gather(*claims, return_exceptions=True)
    assert results.count(None) == 1
    assert sum(isinstance(result, IdempotencyInFlight) for result in results) == 99


async def test_another_request_under_the_key_is_refused(gateways: Gateways) -> None:
    await gateways.claim(gateways.one, claim("req_1"))
    for where in (gateways.one, gateways.two):
        with pytest.raises(IdempotencyMismatch):
            await gateways.claim(where, claim("req_2", body=b'{"other": 1}'))


async def test_mallory_meets_nothing_of_alices_keys(gateways: Gateways) -> None:
    """The same key and body in another organization is another request."""
    await gateways.claim(gateways.one, claim("req_1"))
    assert await gateways.claim(gateways.one, claim("req_2", who="org_mallory")) is None
    await gateways.one.keep(claim("req_1"), b"hers")
    with pytest.raises(IdempotencyInFlight):
        await gateways.claim(gateways.two, claim("req_3", who="org_mallory"))


async def test_a_released_key_is_free(gateways: Gateways) -> None:
    await gateways.claim(gateways.one, claim("req_1"))
    await gateways.one.release(claim("req_1"))
    assert await gateways.claim(gateways.two, claim("req_2", body=b"other")) is None


async def test_an_answer_too_large_to_keep_never_runs_again(gateways: Gateways) -> None:
    await gateways.claim(gateways.one, claim("req_1"))
    await gateways.one.keep(claim("req_1"), None)
    with pytest.raises(IdempotencyNotKept, match="req_1"):
        await gateways.claim(gateways.two, claim("req_2"))


class TestLeases:
    async def test_a_dead_process_s_claim_is_taken_over_after_its_lease_and_not_before(
        self, gateways: Gateways
    ) -> None:
        await gateways.claim(gateways.one, claim("req_1"))
        gateways.clock.advance(LEASE_S - 0.001)
        with pytest.raises(IdempotencyInFlight):
            await gateways.claim(gateways.two, claim("req_2"))
        gateways.clock.advance(0.001)
        assert await gateways.claim(gateways.two, claim("req_2")) is None

    async def test_a_claim_that_is_renewed_is_never_taken(self, gateways: Gateways) -> None:
        await gateways.claim(gateways.one, claim("req_1"))
        for _ in range(5):
            gateways.clock.advance(LEASE_S - 1)
            await gateways.one.renew()
            with pytest.raises(IdempotencyInFlight):
                await gateways.claim(gateways.two, claim("req_2"))
        assert gateways.lost == []

    async def test_who_lost_a_claim_learns_it_and_keeps_nothing(self, gateways: Gateways) -> None:
        """A process that was stopped for long, and goes on, does not overwrite what runs elsewhere."""
        await gateways.claim(gateways.one, claim("req_1"))
        gateways.clock.advance(LEASE_S)
        await gateways.claim(gateways.two, claim("req_2"))
        await gateways.one.renew()
        assert gateways.lost == ["req_1"]
        await gateways.one.keep(claim("req_1"), b"late")
        await gateways.one.release(claim("req_1"))
        await gateways.two.keep(claim("req_2"), b"true")
        assert await gateways.claim(gateways.one, claim("req_3")) == b"true"

    async def test_a_claim_that_ran_out_and_nobody_took_is_still_one_s_own(self, gateways: Gateways) -> None:
        """So a database that was away for a minute costs no call that ran meanwhile."""
        await gateways.claim(gateways.one, claim("req_1"))
        gateways.clock.advance(LEASE_S * 4)
        await gateways.one.renew()
        with pytest.raises(IdempotencyInFlight):
            await gateways.claim(gateways.two, claim("req_2"))

    async def test_a_process_that_stops_gives_its_claims_back(self, gateways: Gateways) -> None:
        await gateways.claim(gateways.one, claim("req_1"))
        await gateways.one.close()
        assert await gateways.claim(gateways.two, claim("req_2")) is None


async def test_what_is_out_of_date_runs_anew_and_is_removed(gateways: Gateways) -> None:
    for number in range(PRUNE_ROWS + 3):
        mine = claim(f"req_{number}", key=f"k{number}")
        await gateways.claim(gateways.one, mine)
        await gateways.one.keep(mine, b"old")
    gateways.clock.advance(KEEP_S - 1)
    assert await gateways.one.prune() == 0
    assert await gateways.claim(gateways.two, claim("req_x", key="k0")) == b"old"
    gateways.clock.advance(1)
    assert await gateways.claim(gateways.two, claim("req_y", key="k0", body=b"new")) is None
    assert await gateways.one.prune() == PRUNE_ROWS + 2
    with pytest.raises(IdempotencyInFlight):
        await gateways.claim(gateways.one, claim("req_z", key="k0", body=b"new"))


class TestWithoutTheDatabase:
    async def test_nothing_runs_that_can_t_be_claimed(self, tmp_path: Path) -> None:
        db = open_database("postgresql://nobody@127.0.0.1:9/none", data_dir=tmp_path, pool_size=1)
        gateway = Idempotency(db, clock=ManualClock(), settings=IdempotencySettings())
        with pytest.raises(Unavailable):
            await gateway.claim(claim("req_1"), on_lost=lambda: None)
        await db.close()

    async def test_an_answer_waits_until_the_database_is_back(self, gateways: Gateways) -> None:
        """Meanwhile its own process answers repeats from memory, and no other runs the request."""
        await gateways.claim(gateways.one, claim("req_1"))
        away, gateways.one._db = (
            gateways.one._db,
            open_database("postgresql://nobody@127.0.0.1:9/none", data_dir=Path(), pool_size=1),
        )
        await gateways.one.keep(claim("req_1"), b"answer")
        assert await gateways.claim(gateways.one, claim("req_2")) == b"answer"
        with pytest.raises(IdempotencyInFlight):
            await gateways.claim(gateways.two, claim("req_3"))
        gateways.one._db = away
        await gateways.one.close()
        assert await gateways.claim(gateways.two, claim("req_4")) == b"answer"
