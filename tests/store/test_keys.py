"""API keys in the database: what their owners can do with them, and what nobody else can."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import pytest
import sqlalchemy as sa

from modelport.access.model import Grant, KeyChange, NewKey
from modelport.access.rules import hash_key
from modelport.access.service import MAX_ACTIVE_KEYS
from modelport.calls import Limits
from modelport.db.engine import Database
from modelport.db.schema import api_keys
from modelport.errors import BadRequest, Conflict, NotFound, PermissionDenied, Unauthenticated, Unprocessable
from tests.store.world import Tenant, World, open_world

SOME = frozenset({"inference", "keys"})


@pytest.fixture
async def world(any_database: Database) -> AsyncIterator[World]:
    async with open_world(any_database) as made:
        yield made


@pytest.fixture
async def alice(world: World) -> Tenant:
    return await world.tenant("Alice")


@pytest.fixture
async def mallory(world: World) -> Tenant:
    return await world.tenant("Mallory")


def new(**grant: Any) -> NewKey:
    return NewKey("staging", Grant(**{"mode": "live", "scopes": frozenset({"inference"}), **grant}))


async def test_a_key_is_shown_once_and_stored_as_a_hash(world: World, alice: Tenant) -> None:
    key, secret = await world.keys.create(alice.caller, new())
    async with world.db.connect() as conn:
        row = (await conn.execute(sa.select(api_keys).where(api_keys.c.id == key.id))).mappings().one()
    assert secret not in str(dict(row))
    assert row["hash"] == hash_key(secret).hex()
    assert secret.startswith(key.prefix)
    assert secret.endswith(key.last4)


async def test_a_new_key_has_what_was_asked_for(world: World, alice: Tenant) -> None:
    expires_us = world.clock.now_us() + 10**9
    asked = new(
        mode="test",
        models=frozenset({"a"}),
        limits=Limits(1, 2, 3),
        allowed_ips=("203.0.113.0/24",),
        expires_us=expires_us,
    )
    key, secret = await world.keys.create(alice.caller, asked)
    assert await world.keys.get(alice.caller, key.id) == key
    assert key.grant == asked.grant
    assert secret.startswith("mp_test_")
    caller = await world.caller(secret)
    assert (caller.mode, caller.models, caller.key_limits) == ("test", frozenset({"a"}), Limits(1, 2, 3))
    assert caller.project_id == alice.project_id
    assert not caller.operator


@pytest.mark.parametrize(
    ("grant", "param"),
    [
        ({"scopes": frozenset({"all"})}, "scopes"),
        ({"scopes": frozenset()}, "scopes"),
        ({"allowed_ips": ("everywhere",)}, "allowed_ips"),
        ({"expires_us": 1}, "expires_at"),
    ],
)
async def test_what_makes_no_sense_is_a_bad_request(
    world: World, alice: Tenant, grant: dict[str, Any], param: str
) -> None:
    with pytest.raises(BadRequest) as refused:
        await world.keys.create(alice.caller, new(**grant))
    assert refused.value.param == param


async def test_a_key_creates_no_key_that_may_do_more(world: World, alice: Tenant) -> None:
    """Whatever is restricted on the creating key is restricted on the created one, asked for or not."""
    now_us = world.clock.now_us()
    weak = await world.key_of(
        alice.organization_id,
        alice.project_id,
        scopes=SOME,
        models=frozenset({"a"}),
        limits=Limits(10, None, 1),
        allowed_ips=("10.0.0.0/8",),
        expires_us=now_us + 10**9,
    )
    for more in (
        {"scopes": SOME | {"billing"}},
        {"models": frozenset({"b"})},
        {"limits": Limits(11)},
        {"allowed_ips": ("0.0.0.0/0",)},
        {"expires_us": now_us + 2 * 10**9},
    ):
        with pytest.raises(PermissionDenied):
            await world.keys.create(weak.caller, new(**more))
    key, _ = await world.keys.create(weak.caller, new())
    assert key.grant == replace(weak.key.grant, scopes=frozenset({"inference"}))


async def test_a_test_key_makes_no_live_key_and_ends_none(world: World, alice: Tenant) -> None:
    test = await world.key_of(alice.organization_id, alice.project_id, mode="test")
    with pytest.raises(PermissionDenied):
        await world.keys.create(test.caller, new())
    with pytest.raises(PermissionDenied):
        await world.keys.update(test.caller, alice.key.id, KeyChange(name="mine"))
    with pytest.raises(PermissionDenied):
        await world.keys.revoke(test.caller, alice.key.id)


async def test_a_key_lifts_no_restriction_of_its_own(world: World, alice: Tenant) -> None:
    weak = await world.key_of(alice.organization_id, alice.project_id, scopes=SOME, limits=Limits(10))
    with pytest.raises(PermissionDenied):
        await world.keys.update(weak.caller, weak.key.id, KeyChange(scopes=SOME | {"billing"}))
    with pytest.raises(PermissionDenied):
        await world.keys.update(weak.caller, weak.key.id, KeyChange(limits=Limits(100)))
    lifted = await world.keys.update(weak.caller, weak.key.id, KeyChange(limits=None))
    assert lifted.grant.limits == Limits(10)


async def test_a_key_changes_no_stronger_key(world: World, alice: Tenant) -> None:
    weak = await world.key_of(alice.organization_id, alice.project_id, scopes=SOME)
    with pytest.raises(PermissionDenied):
        await world.keys.update(weak.caller, alice.key.id, KeyChange(allowed_ips=None))


async def test_an_operators_key_is_out_of_reach_of_others(world: World, alice: Tenant) -> None:
    operator = await world.key_of(alice.organization_id, alice.project_id, operator=True)
    with pytest.raises(PermissionDenied):
        await world.keys.revoke(alice.caller, operator.key.id)
    with pytest.raises(PermissionDenied):
        await world.keys.update(alice.caller, operator.key.id, KeyChange(name="mine"))
    created, secret = await world.keys.create(operator.caller, new())
    assert not created.operator
    assert not (await world.caller(secret)).operator
    assert (await world.keys.revoke(operator.caller, operator.key.id)).revoked_us is not None


async def test_a_change_holds_and_leaves_the_rest_as_it_was(world: World, alice: Tenant) -> None:
    key, secret = await world.keys.create(alice.caller, new(limits=Limits(5, 6, 7), models=frozenset({"a"})))
    changed = await world.keys.update(alice.caller, key.id, KeyChange(name="production", limits=Limits(50)))
    assert changed == replace(key, name="production", grant=replace(key.grant, limits=Limits(50)))
    freed = await world.keys.update(alice.caller, key.id, KeyChange(models=None, limits=None))
    assert freed.grant == replace(key.grant, models=None, limits=Limits())
    assert (await world.caller(secret)).key_limits == Limits()
    assert await world.keys.update(alice.caller, key.id, KeyChange()) == freed


async def test_a_revoked_key_stays_in_the_list_and_stays_revoked(world: World, alice: Tenant) -> None:
    key, _ = await world.keys.create(alice.caller, new())
    revoked = await world.keys.revoke(alice.caller, key.id)
    assert revoked.revoked_us is not None
    assert await world.keys.revoke(alice.caller, key.id) == revoked
    with pytest.raises(Conflict):
        await world.keys.update(alice.caller, key.id, KeyChange(name="back"))
    page = await world.keys.list_page(alice.caller, after=None, limit=10, order="desc")
    assert revoked in page.keys


async def test_a_key_that_was_revoked_meanwhile_creates_nothing(world: World, alice: Tenant) -> None:
    await world.keys.revoke(alice.caller, alice.key.id)
    with pytest.raises(Unauthenticated):
        await world.keys.create(alice.caller, new())


async def test_pages_hold_every_key_once_in_both_orders(world: World, alice: Tenant) -> None:
    ids = [alice.key.id] + [(await world.keys.create(alice.caller, new()))[0].id for _ in range(6)]
    for order, expected in (("asc", sorted(ids)), ("desc", sorted(ids, reverse=True))):
        seen: list[str] = []
        after, more = None, True
        while more:
            page = await world.keys.list_page(alice.caller, after=after, limit=3, order=order)  # type: ignore[arg-type]
            seen += [key.id for key in page.keys]
            after, more = seen[-1], page.has_more
        assert seen == expected
    with pytest.raises(BadRequest):
        await world.keys.list_page(alice.caller, after=None, limit=1001, order="asc")


async def test_mallory_sees_changes_and_ends_none_of_alices_keys(world: World, alice: Tenant, mallory: Tenant) -> None:
    for attempt in (
        world.keys.get(mallory.caller, alice.key.id),
        world.keys.update(mallory.caller, alice.key.id, KeyChange(name="mine")),
        world.keys.revoke(mallory.caller, alice.key.id),
    ):
        with pytest.raises(NotFound):
            await attempt
    page = await world.keys.list_page(mallory.caller, after=None, limit=100, order="asc")
    assert [key.id for key in page.keys] == [mallory.key.id]
    peek = await world.keys.list_page(mallory.caller, after=alice.key.id, limit=100, order="asc")
    assert alice.key.id not in [key.id for key in peek.keys]
    assert await world.keys.get(alice.caller, alice.key.id) == alice.key


async def test_mallory_makes_no_key_in_alices_project(world: World, alice: Tenant, mallory: Tenant) -> None:
    with pytest.raises(NotFound):
        await world.keys.create(mallory.caller, replace(new(), project_id=alice.project_id))


async def test_a_key_can_be_made_for_another_project_of_the_same_organization(world: World, alice: Tenant) -> None:
    other = await world.accounts.create_project(alice.organization_id, "other")
    key, secret = await world.keys.create(alice.caller, replace(new(), project_id=other.id))
    assert key.project_id == other.id
    assert (await world.caller(secret)).project_id == other.id


async def test_an_organization_has_a_bounded_number_of_keys(world: World, alice: Tenant) -> None:
    rows = [
        {
            "id": f"key_{number}",
            "organization_id": alice.organization_id,
            "project_id": alice.project_id,
            "name": "x",
            "mode": "live",
            "prefix": "mp_live_",
            "last4": "0000",
            "hash": f"{number:064x}",
            "scopes": ["inference"],
            "created_us": 0,
        }
        for number in range(MAX_ACTIVE_KEYS - 1)
    ]
    async with world.db.begin() as conn:
        await conn.execute(sa.insert(api_keys), rows)
    with pytest.raises(Unprocessable, match="revoke some"):
        await world.keys.create(alice.caller, new())
    await world.keys.revoke(alice.caller, "key_5")
    await world.keys.create(alice.caller, new())
