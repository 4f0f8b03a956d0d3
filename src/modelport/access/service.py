"""What can be done with API keys. Every method acts for a caller and sees that caller's organization alone."""

from __future__ import annotations

from dataclasses import replace

from msgspec import UNSET
from sqlalchemy.ext.asyncio import AsyncConnection

from modelport.access import grants, store
from modelport.access.announce import announced
from modelport.access.model import ApiKey, Grant, KeyChange, KeyPage, NewKey
from modelport.access.rules import OPERATOR_SCOPES, PREFIXES, SCOPES, hash_key, make_key
from modelport.calls import Caller, Mode
from modelport.db.engine import Database
from modelport.errors import BadRequest, Conflict, NotFound, PermissionDenied, Unauthenticated, Unprocessable
from modelport.kit.clock import Clock
from modelport.kit.ids import IdSource
from modelport.state.protocol import State

# Living keys of one organization: more than any team needs, fewer than a program in a loop creates in a day.
MAX_ACTIVE_KEYS = 10_000
MAX_PAGE = 100


class KeyIssuer:
    """Makes keys and stores them. Asks nobody for permission: `KeyService` does, and the first start needs none."""

    def __init__(self, clock: Clock, ids: IdSource) -> None:
        self._clock = clock
        self._ids = ids

    async def issue(
        self, conn: AsyncConnection, new: NewKey, *, organization_id: str, project_id: str, operator: bool = False
    ) -> tuple[ApiKey, str]:
        """The stored key and its secret, which is nowhere else from now on."""
        secret = make_key(new.grant.mode)
        key = ApiKey(
            id=self._ids.new("key_"),
            organization_id=organization_id,
            project_id=project_id,
            name=new.name,
            grant=new.grant,
            prefix=PREFIXES[new.grant.mode],
            last4=secret[-4:],
            hash=hash_key(secret).hex(),
            operator=operator,
            created_us=self._clock.now_us(),
        )
        await store.insert_key(conn, key=key)
        return key, secret

    async def issue_full(
        self, conn: AsyncConnection, *, organization_id: str, project_id: str, name: str, mode: Mode, operator: bool
    ) -> str:
        """The secret of a new key with every scope, for an installation's or an organization's first key.

        What is for operators alone only an operator's key gets.
        """
        scopes = frozenset(SCOPES) if operator else frozenset(SCOPES) - OPERATOR_SCOPES
        new = NewKey(name, Grant(mode=mode, scopes=scopes))
        _, secret = await self.issue(
            conn, new, organization_id=organization_id, project_id=project_id, operator=operator
        )
        return secret


class KeyService:
    """Concurrency: any number of tasks and processes; a change holds in every process once the method returns."""

    def __init__(self, db: Database, state: State, *, clock: Clock, ids: IdSource) -> None:
        self._db = db
        self._state = state
        self._clock = clock
        self._issuer = KeyIssuer(clock, ids)

    async def create(self, actor: Caller, new: NewKey) -> tuple[ApiKey, str]:
        """A key that may do at most what the caller's key may, and its secret.

        Restrictions that were not asked for are the caller's own. Raises: BadRequest, PermissionDenied, NotFound
        (the project), Unprocessable (too many keys).
        """
        grants.check_valid(new.grant, now_us=self._clock.now_us())
        project_id = new.project_id or actor.project_id
        organization_id = actor.organization_id
        async with self._db.begin() as conn:
            giver = await self._giver(conn, actor)
            grant = grants.inherit(new.grant, giver)
            grants.check_within(grant, giver)
            if not await store.has_project(conn, organization_id=organization_id, project_id=project_id):
                raise NotFound(f"There is no project {project_id[:64]!r}.", param="project_id")
            if await store.count_active_keys(conn, organization_id=organization_id) >= MAX_ACTIVE_KEYS:
                raise Unprocessable(f"An organization has at most {MAX_ACTIVE_KEYS:,} keys; revoke some first.")
            return await self._issuer.issue(
                conn, replace(new, grant=grant), organization_id=organization_id, project_id=project_id
            )

    async def list_page(self, actor: Caller, *, after: str | None, limit: int, order: store.Order) -> KeyPage:
        """Keys of the organization behind `after` (a key's id), revoked ones among them. Raises: BadRequest."""
        if not 1 <= limit <= MAX_PAGE:
            raise BadRequest(f"limit is from 1 to {MAX_PAGE}.", param="limit")
        async with self._db.connect() as conn:
            keys = await store.list_keys(
                conn, organization_id=actor.organization_id, after=after, limit=limit + 1, order=order
            )
        return KeyPage(keys[:limit], has_more=len(keys) > limit)

    async def get(self, actor: Caller, key_id: str) -> ApiKey:
        """The organization's key. Raises: NotFound, also for another organization's."""
        async with self._db.connect() as conn:
            return await self._get(conn, actor, key_id)

    async def update(self, actor: Caller, key_id: str, change: KeyChange) -> ApiKey:
        """Change a key within what the caller's own key may do; it holds everywhere at the next call.

        Raises: BadRequest, NotFound, PermissionDenied, Conflict (the key is revoked), StateUnavailable.
        """
        async with self._db.connect() as conn:
            key = await self._get(conn, actor, key_id)
            giver = await self._giver(conn, actor)
        if key.revoked_us is not None:
            raise Conflict("The key is revoked; nothing of it can be changed any more.")
        _check_operator(actor, key)
        grant = grants.change(key.grant, change, giver)
        # A key that has expired may be renamed; only a new expiry has to lie ahead.
        grants.check_valid(grant, now_us=0 if change.expires_us is UNSET else self._clock.now_us())
        grants.check_within(grant, giver)
        values = store.grant_columns(grant, only=[n for n in grants.CHANGEABLE if getattr(change, n) is not UNSET])
        if change.name is not UNSET:
            values["name"] = change.name
        if values:
            await self._store(key, values)
        return await self.get(actor, key_id)

    async def revoke(self, actor: Caller, key_id: str) -> ApiKey:
        """Take the key out of use, in every process from the instant this is committed. Again changes nothing.

        Raises: NotFound, PermissionDenied, StateUnavailable (with nothing changed).
        """
        async with self._db.connect() as conn:
            key = await self._get(conn, actor, key_id)
        _check_operator(actor, key)
        if actor.mode == "test" and key.grant.mode == "live":
            raise PermissionDenied("A test key can't revoke live keys; use a live key.")
        await self._store(key, {"revoked_us": self._clock.now_us()})
        return await self.get(actor, key_id)

    async def _store(self, key: ApiKey, values: dict[str, object]) -> None:
        async with announced(self._state, key_hash=key.hash), self._db.begin() as conn:
            await store.update_key(conn, organization_id=key.organization_id, key_id=key.id, values=values)

    async def _get(self, conn: AsyncConnection, actor: Caller, key_id: str) -> ApiKey:
        key = await store.find_key(conn, organization_id=actor.organization_id, key_id=key_id)
        if key is None:
            raise NotFound(f"There is no API key {key_id[:64]!r}.")
        return key

    async def _giver(self, conn: AsyncConnection, actor: Caller) -> Grant:
        own = await store.find_key(conn, organization_id=actor.organization_id, key_id=actor.key_id)
        if own is not None and own.revoked_us is not None:
            raise Unauthenticated("This API key was revoked.")
        return grants.grant_of(actor, own)


def _check_operator(actor: Caller, key: ApiKey) -> None:
    if key.operator and not actor.operator:
        raise PermissionDenied("This is an operator's key; only an operator's key can change or revoke it.")
