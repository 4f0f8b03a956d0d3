"""The people of these tests: Alice, who owns an organization; Mallory, who owns another and wants hers."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Any

from modelport.access import store
from modelport.access.announce import announced
from modelport.access.keyring import GAP_S, KeyRing
from modelport.access.model import ApiKey, Grant, NewKey
from modelport.access.rules import SCOPES, hash_key
from modelport.access.service import KeyIssuer, KeyService
from modelport.accounts.service import AccountService
from modelport.accounts.store import insert_first_plans
from modelport.calls import Caller, Limits
from modelport.db.engine import Database
from modelport.kit.clock import Clock, SystemClock
from modelport.kit.ids import IdSource
from modelport.limits.service import Limiter
from modelport.settings import AccessSettings
from modelport.state.memory import MemoryState
from modelport.state.protocol import State

ALL = frozenset(SCOPES)
ADDRESS = "198.51.100.7"


@dataclass
class Tenant:
    """An organization, its project, and its first key."""

    organization_id: str
    project_id: str
    caller: Caller
    key: ApiKey
    secret: str


@dataclass
class World:
    """Real services on a real database and state."""

    db: Database
    state: State
    clock: Clock
    accounts: AccountService
    keys: KeyService
    issuer: KeyIssuer
    limiter: Limiter

    async def tenant(self, name: str, *, plan: str = "custom", limits: Limits | None = None, **key: Any) -> Tenant:
        """A new organization whose first key has every scope, or what `key` says of its grant."""
        organization = await self.accounts.create_organization(name, plan, limits=limits or Limits())
        project = await self.accounts.create_project(organization.id, "default")
        return await self.key_of(organization.id, project.id, **key)

    async def key_of(self, organization_id: str, project_id: str, *, operator: bool = False, **grant: Any) -> Tenant:
        """Another key of the organization, made without asking anybody."""
        new = NewKey("test", Grant(**{"mode": "live", "scopes": ALL, **grant}))
        async with self.db.begin() as conn:
            key, secret = await self.issuer.issue(
                conn, new, organization_id=organization_id, project_id=project_id, operator=operator
            )
        return Tenant(organization_id, project_id, await self.caller(secret), key, secret)

    async def caller(self, secret: str) -> Caller:
        """Who the database says calls with this key."""
        async with self.db.connect() as conn:
            holder = await store.find_holder(conn, key_hash=hash_key(secret).hex())
        assert holder is not None
        return holder.caller

    @asynccontextmanager
    async def ring(self, *, gap_s: float = GAP_S, **settings: Any) -> AsyncIterator[KeyRing]:
        """A key ring as a process of its own would have it."""
        chosen = AccessSettings(**{"touch_interval_s": 3600.0, **settings})
        ring = KeyRing(self.db, self.state, clock=self.clock, settings=chosen, gap_s=gap_s)
        await ring.start()
        try:
            yield ring
        finally:
            await ring.close()

    async def fence(self) -> int:
        """What a call's take reads now."""
        return (await self.state.take("test", (), fence="keys")).fence


@asynccontextmanager
async def open_world(db: Database, *, state: State | None = None, clock: Clock | None = None) -> AsyncIterator[World]:
    """The services on a migrated database, with the first plans in it."""
    time = clock or SystemClock()
    ids = IdSource(time)
    async with AsyncExitStack() as stack:
        shared = state or MemoryState(time)
        await shared.start()
        stack.push_async_callback(shared.close)
        async with db.begin() as conn:
            await insert_first_plans(conn, now_us=time.now_us())
        accounts = AccountService(db, clock=time, ids=ids, announce=lambda id_: announced(shared, organization_id=id_))
        yield World(
            db,
            shared,
            time,
            accounts,
            KeyService(db, shared, clock=time, ids=ids),
            KeyIssuer(time, ids),
            Limiter(shared, management_per_minute=600),
        )
