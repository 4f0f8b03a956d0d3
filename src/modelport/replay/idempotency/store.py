"""The table `idempotency_keys` in SQL. Every statement names the organization, except those of a process on its own
claims and the one that removes what is out of date."""

from __future__ import annotations

from collections.abc import Collection

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.ext.asyncio import AsyncConnection

from modelport.db.schema import idempotency_keys as keys
from modelport.replay.idempotency.model import Claim, Record

_IN_FLIGHT = keys.c.lease_us.is_not(None)


async def insert_claim(
    conn: AsyncConnection, *, claim: Claim, now_us: int, lease_us: int, expires_us: int
) -> bool:  # fmt: skip
    """Claim the key, if nobody has it: new, out of date, or claimed by a process that let its lease run out."""
    insert = sqlite.insert(keys) if conn.dialect.name == "sqlite" else postgresql.insert(keys)
    values = {
        "fingerprint": claim.fingerprint,
        "call_id": claim.call_id,
        "lease_us": lease_us,
        "answer": None,
        "created_us": now_us,
        "expires_us": expires_us,
    }
    statement = (
        insert.values(organization_id=claim.organization_id, key_hash=claim.key_hash, **values)
        .on_conflict_do_update(
            index_elements=[keys.c.organization_id, keys.c.key_hash],
            set_=values,
            where=sa.or_(keys.c.expires_us <= now_us, keys.c.lease_us <= now_us),
        )
        .returning(keys.c.call_id)
    )
    return (await conn.execute(statement)).scalar() is not None


async def find_record(conn: AsyncConnection, *, organization_id: str, key_hash: str) -> Record | None:
    """What is known of the organization's key."""
    query = sa.select(keys.c.fingerprint, keys.c.call_id, keys.c.lease_us, keys.c.answer).where(
        keys.c.organization_id == organization_id, keys.c.key_hash == key_hash
    )
    row = (await conn.execute(query)).one_or_none()
    return None if row is None else Record(*row)


async def update_kept(conn: AsyncConnection, *, claim: Claim, answer: bytes | None) -> bool:
    """End the claim with its answer (None: too large to keep); false when it was lost to another call."""
    statement = sa.update(keys).where(*_own(claim)).values(lease_us=None, answer=answer)
    return (await conn.execute(statement)).rowcount == 1


async def delete_claim(conn: AsyncConnection, *, claim: Claim) -> None:
    """Give the key free again, unless the claim was lost to another call."""
    await conn.execute(sa.delete(keys).where(*_own(claim)))


async def renew_claims(conn: AsyncConnection, *, call_ids: Collection[str], lease_us: int) -> set[str]:
    """Extend these calls' leases, those that ran out and nobody took among them; which calls still hold theirs."""
    statement = sa.update(keys).where(keys.c.call_id.in_(call_ids), _IN_FLIGHT).values(lease_us=lease_us)
    return set((await conn.execute(statement.returning(keys.c.call_id))).scalars())


async def delete_expired(conn: AsyncConnection, *, now_us: int, most: int) -> int:
    """Remove up to `most` keys that are out of date; how many there were."""
    old = sa.select(keys.c.organization_id, keys.c.key_hash).where(keys.c.expires_us <= now_us).limit(most)
    statement = sa.delete(keys).where(
        sa.tuple_(keys.c.organization_id, keys.c.key_hash).in_(old), keys.c.expires_us <= now_us
    )
    return int((await conn.execute(statement)).rowcount)


def _own(claim: Claim) -> tuple[sa.ColumnElement[bool], ...]:
    return (
        keys.c.organization_id == claim.organization_id,
        keys.c.key_hash == claim.key_hash,
        keys.c.call_id == claim.call_id,
        _IN_FLIGHT,
    )
