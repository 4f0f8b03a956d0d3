"""Plans reach the calls: an organization's limits are its plan's or its own, and a change holds at the next call."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from modelport.access.keyring import KeyRing
from modelport.calls import Limits
from modelport.db.engine import Database
from modelport.errors import LimitExceeded
from tests.store.world import ADDRESS, World, open_world


@pytest.fixture
async def world(any_database: Database) -> AsyncIterator[World]:
    async with open_world(any_database) as made:
        yield made


async def call(world: World, ring: KeyRing, secret: str) -> None:
    """One call of 10 tokens through key and limits."""
    caller = await ring.authenticate(secret, address=ADDRESS)
    reservation = await world.limiter.reserve("call", caller, tokens=10)
    try:
        await ring.confirm(secret, caller, reservation.fence)
    finally:
        await world.limiter.settle(reservation, tokens=10)


async def test_a_key_has_its_plans_limits_and_discount(world: World) -> None:
    await world.accounts.create_plan("team", "Team", limits=Limits(5, 6, 7), discount_basis_points=1_500)
    alice = await world.tenant("Alice", plan="team", limits=None)
    assert alice.caller.organization_limits == Limits(5, 6, 7)
    assert alice.caller.discount_basis_points == 1_500
    assert alice.caller.plan_id == "team"


async def test_an_organizations_own_limit_replaces_its_plans_one_by_one(world: World) -> None:
    alice = await world.tenant("Alice", plan="free", limits=Limits(requests_per_minute=0, concurrent_calls=100))
    assert alice.caller.organization_limits == Limits(0, 20_000, 100)


async def test_a_new_plan_holds_for_every_key_at_its_next_call_but_one(world: World) -> None:
    """The call that notices the change has its place under the old limit; each later one under the new."""
    alice = await world.tenant("Alice", plan="custom")
    second = await world.key_of(alice.organization_id, alice.project_id)
    mallory = await world.tenant("Mallory", plan="custom")
    async with world.ring() as ring:
        for tenant in (alice, second, mallory):
            await call(world, ring, tenant.secret)
        await world.accounts.set_plan(alice.organization_id, "free", limits=Limits(requests_per_minute=0))
        for tenant in (alice, second):
            caller = await ring.authenticate(tenant.secret, address=ADDRESS)
            fresh = await ring.confirm(tenant.secret, caller, await world.fence())
            assert fresh.organization_limits == Limits(0, 20_000, 4)
            with pytest.raises(LimitExceeded):
                await call(world, ring, tenant.secret)
        await call(world, ring, mallory.secret)


async def test_the_free_plan_lets_sixty_requests_a_minute_through(world: World) -> None:
    alice = await world.tenant("Alice", plan="free")
    mallory = await world.tenant("Mallory", plan="free")
    async with world.ring() as ring:
        for _ in range(60):
            await call(world, ring, alice.secret)
        with pytest.raises(LimitExceeded) as refused:
            await call(world, ring, alice.secret)
        assert refused.value.type == "requests"
        assert refused.value.retry_after_s
        await call(world, ring, mallory.secret)


async def test_tokens_are_reserved_at_their_worst_and_given_back(world: World) -> None:
    alice = await world.tenant("Alice", plan="free")
    reservation = await world.limiter.reserve("a", alice.caller, tokens=20_000)
    with pytest.raises(LimitExceeded) as refused:
        await world.limiter.reserve("b", alice.caller, tokens=1)
    assert refused.value.type == "tokens"
    for _ in range(3):
        await world.limiter.settle(reservation, tokens=5_000)
    left = {level.bucket.name: level.remaining for level in await world.limiter.levels(alice.caller)}
    assert left == {"rpm": 59, "tpm": 15_000, "calls": 4}


async def test_concurrent_calls_are_bounded_and_each_end_makes_room(world: World) -> None:
    alice = await world.tenant("Alice", plan="free")
    held = [await world.limiter.reserve(f"call{number}", alice.caller, tokens=1) for number in range(4)]
    with pytest.raises(LimitExceeded) as refused:
        await world.limiter.reserve("one more", alice.caller, tokens=1)
    assert refused.value.type == "concurrency"
    await world.limiter.settle(held[0], tokens=1)
    await world.limiter.reserve("one more", alice.caller, tokens=1)


async def test_a_request_that_never_fits_takes_nothing(world: World) -> None:
    alice = await world.tenant("Alice", plan="free")
    with pytest.raises(LimitExceeded) as refused:
        await world.limiter.reserve("huge", alice.caller, tokens=20_001)
    assert refused.value.should_retry is False
    left = {level.bucket.name: level.remaining for level in await world.limiter.levels(alice.caller)}
    assert left == {"rpm": 60, "tpm": 20_000, "calls": 4}


async def test_a_test_key_spends_nothing_of_the_live_limits(world: World) -> None:
    alice = await world.tenant("Alice", plan="free")
    test = await world.key_of(alice.organization_id, alice.project_id, mode="test")
    for number in range(60):
        reservation = await world.limiter.reserve(f"call{number}", test.caller, tokens=1)
        await world.limiter.settle(reservation, tokens=1)
    with pytest.raises(LimitExceeded):
        await world.limiter.reserve("one more", test.caller, tokens=1)
    await world.limiter.reserve("live", alice.caller, tokens=1)


async def test_management_calls_have_a_limit_of_their_own(world: World) -> None:
    alice = await world.tenant("Alice", limits=Limits(0, 0, 0))
    for number in range(600):
        await world.limiter.reserve_management(f"call{number}", alice.caller)
    with pytest.raises(LimitExceeded) as refused:
        await world.limiter.reserve_management("one more", alice.caller)
    assert [level.bucket.name for level in refused.value.levels] == ["management"]  # type: ignore[attr-defined]
