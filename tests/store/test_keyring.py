"""The key ring: fast for who may come in, and never a call late for who may not."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from modelport.access.announce import announced
from modelport.access.keyring import KeyRing
from modelport.access.model import Grant, KeyChange, NewKey
from modelport.access.rules import make_key
from modelport.access.store import find_key
from modelport.calls import Limits
from modelport.db.engine import Database, open_database
from modelport.db.migrate import migrate
from modelport.errors import ModelportError, PermissionDenied, StateUnavailable, Unauthenticated, Unavailable
from modelport.kit.clock import ManualClock
from tests import services
from tests.store.world import ADDRESS, Tenant, World, open_world
from tests.waiting import wait_until

HOUR_S = 3600


@pytest.fixture
async def world(any_database: Database) -> AsyncIterator[World]:
    async with open_world(any_database, clock=ManualClock()) as made:
        yield made


@pytest.fixture
async def ring(world: World) -> AsyncIterator[KeyRing]:
    async with world.ring(gap_s=0.05) as made:
        yield made


@pytest.fixture
async def alice(world: World) -> Tenant:
    return await world.tenant("Alice")


def advance(world: World, seconds: float) -> None:
    assert isinstance(world.clock, ManualClock)
    world.clock.advance(seconds)


async def call(world: World, ring: KeyRing, secret: str) -> None:
    """Authenticate, take, confirm: what every call does. Raises what it is refused with."""
    caller = await ring.authenticate(secret, address=ADDRESS)
    await ring.confirm(secret, caller, await world.fence())


async def test_a_key_leads_to_its_caller(world: World, ring: KeyRing, alice: Tenant) -> None:
    caller = await ring.authenticate(alice.secret, address=ADDRESS)
    assert caller == alice.caller
    assert caller.organization_id == alice.organization_id


async def test_a_cached_key_needs_neither_database_nor_a_pause(world: World, ring: KeyRing, alice: Tenant) -> None:
    """A coroutine that never suspends ends at its first `send`."""
    caller = await ring.authenticate(alice.secret, address=ADDRESS)
    fence = await world.fence()
    await world.db.close()
    for coroutine in (ring.authenticate(alice.secret, address=ADDRESS), ring.confirm(alice.secret, caller, fence)):
        with pytest.raises(StopIteration) as ended:
            coroutine.send(None)
        assert ended.value.value is caller


@pytest.mark.parametrize("secret", ["", "sk-1234", "mp_live_short", "mp_live_" + "a" * 46, "é" * 54, "\ud800" * 54])
async def test_what_is_no_key_is_refused_without_a_look_up(tmp_path: Path, secret: str) -> None:
    """There is no database to look anything up in."""
    db = open_database("", data_dir=tmp_path, pool_size=1)
    await migrate(db)
    async with open_world(db) as world, world.ring() as ring:
        await db.close()
        (tmp_path / "modelport.db").unlink()
        with pytest.raises(Unauthenticated) as refused:
            await ring.authenticate(secret, address=ADDRESS)
        assert not secret or secret not in refused.value.message
    await db.close()


async def test_an_unknown_key_is_refused_and_never_repeated(world: World, ring: KeyRing) -> None:
    secret = make_key("live")
    for _ in range(2):
        with pytest.raises(Unauthenticated) as refused:
            await ring.authenticate(secret, address=ADDRESS)
        assert secret[:20] not in str(refused.value)
        assert secret[-6:] not in refused.value.message


async def test_a_key_works_until_the_instant_it_expires(world: World, ring: KeyRing, alice: Tenant) -> None:
    """Cached or not: expiry is looked at with every use."""
    short = await world.key_of(
        alice.organization_id, alice.project_id, expires_us=world.clock.now_us() + HOUR_S * 1_000_000
    )
    await call(world, ring, short.secret)
    caller = await ring.authenticate(short.secret, address=ADDRESS)
    advance(world, HOUR_S - 1)
    await call(world, ring, short.secret)
    advance(world, 1)
    for _ in range(2):
        with pytest.raises(Unauthenticated, match="expired at 2026-01-01T01:00:00Z"):
            await ring.authenticate(short.secret, address=ADDRESS)
    assert caller.key_id == short.key.id


async def test_a_key_is_used_from_its_addresses_alone(world: World, ring: KeyRing, alice: Tenant) -> None:
    bound = await world.key_of(alice.organization_id, alice.project_id, allowed_ips=("203.0.113.0/24", "2001:db8::/32"))
    for address in ("203.0.113.9", "::ffff:203.0.113.9", "2001:db8::1"):
        await ring.authenticate(bound.secret, address=address)
    for address in ("198.51.100.1", "2001:db9::1", "", "unix"):
        with pytest.raises(PermissionDenied):
            await ring.authenticate(bound.secret, address=address)


async def test_a_revoked_key_is_refused_by_every_ring_at_its_next_call(world: World, alice: Tenant) -> None:
    """No wait in between: the fence speaks before any message has arrived."""
    async with world.ring() as first, world.ring() as second:
        for _ in range(20):
            key, secret = await world.keys.create(alice.caller, _new())
            for ring in (first, second):
                await call(world, ring, secret)
            callers = [await ring.authenticate(secret, address=ADDRESS) for ring in (first, second)]
            await world.keys.revoke(alice.caller, key.id)
            fence = await world.fence()
            for ring, caller in zip((first, second), callers, strict=True):
                with pytest.raises(Unauthenticated, match="revoked"):
                    await ring.confirm(secret, caller, fence)
                with pytest.raises(Unauthenticated, match="revoked"):
                    await call(world, ring, secret)


async def test_a_change_holds_at_the_next_call(world: World, ring: KeyRing, alice: Tenant) -> None:
    key, secret = await world.keys.create(alice.caller, _new())
    await call(world, ring, secret)
    old = await ring.authenticate(secret, address=ADDRESS)
    await world.keys.update(alice.caller, key.id, KeyChange(limits=Limits(7), scopes=frozenset({"billing"})))
    now = await ring.confirm(secret, old, await world.fence())
    assert (now.key_limits, now.scopes) == (Limits(7), frozenset({"billing"}))


async def test_other_keys_stay_cached_when_one_is_revoked(world: World, ring: KeyRing, alice: Tenant) -> None:
    await call(world, ring, alice.secret)
    key, _ = await world.keys.create(alice.caller, _new())
    cached = await ring.authenticate(alice.secret, address=ADDRESS)
    await world.keys.revoke(alice.caller, key.id)
    fence = await world.fence()

    async def is_trusted() -> bool:
        return await ring.confirm(alice.secret, cached, fence) is cached

    await wait_until(is_trusted, "the ring has read the message")


async def test_while_a_change_is_under_way_the_database_is_asked(world: World, ring: KeyRing, alice: Tenant) -> None:
    """Between the fence and the commit nobody knows; a change that dies there is given up after a while."""
    await call(world, ring, alice.secret)
    caller = await ring.authenticate(alice.secret, address=ADDRESS)

    async def change_that_dies() -> None:
        async with announced(world.state, key_hash=alice.key.hash):
            again = await ring.confirm(alice.secret, caller, await world.fence())
            assert again == caller
            assert again is not caller
            raise StateUnavailable

    with pytest.raises(StateUnavailable):
        await change_that_dies()
    fence = await world.fence()

    async def is_cached() -> bool:
        known = await ring.authenticate(alice.secret, address=ADDRESS)
        return await ring.confirm(alice.secret, known, fence) is known

    await wait_until(is_cached, "the ring has given the change up")


async def test_a_fence_that_moved_alone_is_caught_up_with(world: World, ring: KeyRing, alice: Tenant) -> None:
    """As when the process that raised it died before its first message, or the state lost its memory."""
    await call(world, ring, alice.secret)
    await world.state.raise_fence("keys")
    fence = await world.fence()

    async def is_cached() -> bool:
        known = await ring.authenticate(alice.secret, address=ADDRESS)
        return await ring.confirm(alice.secret, known, fence) is known

    assert not await is_cached()
    await wait_until(is_cached, "the ring has caught up")


async def test_a_message_that_can_not_be_read_makes_the_ring_start_afresh(
    world: World, ring: KeyRing, alice: Tenant
) -> None:
    cached = await ring.authenticate(alice.secret, address=ADDRESS)
    await world.state.publish("keys", b"from another version")

    async def forgotten() -> bool:
        return await ring.authenticate(alice.secret, address=ADDRESS) is not cached

    await wait_until(forgotten, "the cache is forgotten")


async def test_many_who_wait_for_one_key_ask_once(world: World, ring: KeyRing, alice: Tenant) -> None:
    callers = await asyncio.gather(*(ring.authenticate(alice.secret, address=ADDRESS) for _ in range(50)))
    assert all(caller is callers[0] for caller in callers)


async def test_one_who_gives_up_waiting_stops_nobody_else(world: World, ring: KeyRing, alice: Tenant) -> None:
    first = asyncio.create_task(ring.authenticate(alice.secret, address=ADDRESS))
    second = asyncio.create_task(ring.authenticate(alice.secret, address=ADDRESS))
    await asyncio.sleep(0)
    first.cancel()
    assert await second == alice.caller
    with pytest.raises(asyncio.CancelledError):
        await first


async def test_the_cache_is_bounded_and_drops_the_least_recently_used(world: World, alice: Tenant) -> None:
    async with world.ring(cache_keys=2) as ring:
        a, b, c = [await world.key_of(alice.organization_id, alice.project_id) for _ in range(3)]
        kept = await ring.authenticate(a.secret, address=ADDRESS)
        dropped = await ring.authenticate(b.secret, address=ADDRESS)
        await ring.authenticate(a.secret, address=ADDRESS)
        await ring.authenticate(c.secret, address=ADDRESS)
        assert await ring.authenticate(a.secret, address=ADDRESS) is kept
        assert await ring.authenticate(b.secret, address=ADDRESS) is not dropped


async def test_a_cached_key_is_read_again_after_its_time(world: World, ring: KeyRing, alice: Tenant) -> None:
    cached = await ring.authenticate(alice.secret, address=ADDRESS)
    advance(world, 299)
    assert await ring.authenticate(alice.secret, address=ADDRESS) is cached
    advance(world, 2)
    assert await ring.authenticate(alice.secret, address=ADDRESS) is not cached


async def test_last_use_is_written_in_batches_and_on_close(world: World, alice: Tenant) -> None:
    async with world.ring() as ring:
        await ring.authenticate(alice.secret, address=ADDRESS)
        advance(world, 5)
        await ring.authenticate(alice.secret, address=ADDRESS)
        assert (await world.keys.get(alice.caller, alice.key.id)).last_used_us is None
    used_us = (await world.keys.get(alice.caller, alice.key.id)).last_used_us
    assert used_us == world.clock.now_us()


async def test_last_use_is_written_every_interval(world: World, alice: Tenant) -> None:
    async with world.ring(touch_interval_s=0.02) as ring:
        await ring.authenticate(alice.secret, address=ADDRESS)

        async def written() -> bool:
            return (await world.keys.get(alice.caller, alice.key.id)).last_used_us is not None

        await wait_until(written, "the use is written")


async def test_a_lost_subscription_means_asking_the_database_each_time(any_database: Database) -> None:
    """Fail closed: the ring knows that it may have missed something, and says nothing from memory."""
    async with open_world(any_database, clock=ManualClock()) as world, world.ring() as ring:
        alice = await world.tenant("Alice")
        cached = await ring.authenticate(alice.secret, address=ADDRESS)
        await world.state.close()
        again = await ring.authenticate(alice.secret, address=ADDRESS)
        assert again == cached
        assert again is not cached
        assert await ring.authenticate(alice.secret, address=ADDRESS) is not again
        await world.state.start()

        async def is_cached() -> bool:
            known = await ring.authenticate(alice.secret, address=ADDRESS)
            return await ring.authenticate(alice.secret, address=ADDRESS) is known

        await wait_until(is_cached, "the ring listens again")


async def test_a_revocation_that_can_not_be_announced_is_not_made(world: World, ring: KeyRing, alice: Tenant) -> None:
    await world.state.close()
    with pytest.raises(StateUnavailable):
        await world.keys.revoke(alice.caller, alice.key.id)
    assert (await world.keys.get(alice.caller, alice.key.id)).revoked_us is None
    await world.state.start()


async def test_without_a_database_cached_keys_go_on_and_others_wait(
    postgres_service: services.Service, tmp_path: Path
) -> None:
    """As long as the fence stays where it is; once it moves, nobody can tell any more."""
    db = open_database(postgres_service.url, data_dir=tmp_path, pool_size=2)
    await migrate(db)
    clock = ManualClock()
    async with open_world(db, clock=clock) as world, world.ring() as ring:
        alice = await world.tenant("Alice")
        other = await world.key_of(alice.organization_id, alice.project_id)
        cached = await ring.authenticate(alice.secret, address=ADDRESS)
        fence = await world.fence()
        # A killed server's connections would go on answering for a moment.
        postgres_service.stop()
        assert await ring.confirm(alice.secret, cached, fence) is cached
        clock.advance(301)
        assert await ring.authenticate(alice.secret, address=ADDRESS) is cached
        assert await ring.confirm(alice.secret, cached, fence) is cached
        with pytest.raises(Unavailable):
            await ring.authenticate(other.secret, address=ADDRESS)
        await world.state.raise_fence("keys")
        with pytest.raises(Unavailable):
            await ring.confirm(alice.secret, cached, await world.fence())
        postgres_service.start()

        async def answers() -> bool:
            try:
                await ring.authenticate(other.secret, address=ADDRESS)
            except ModelportError:
                return False
            return True

        await wait_until(answers, "the database is back")
    assert (await _last_used(db, alice)) is not None
    await db.close()


async def _last_used(db: Database, tenant: Tenant) -> int | None:
    async with db.connect() as conn:
        key = await find_key(conn, organization_id=tenant.organization_id, key_id=tenant.key.id)
    assert key is not None
    return key.last_used_us


def _new() -> NewKey:
    return NewKey("temporary", Grant(mode="live", scopes=frozenset({"inference"})))
