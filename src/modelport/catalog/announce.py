"""How a change of the registry reaches every process: a message now, and a revision that is looked at now and then."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

from sqlalchemy.ext.asyncio import AsyncConnection

from modelport.catalog import store
from modelport.db.engine import Database
from modelport.errors import StateUnavailable
from modelport.state.protocol import State

CHANNEL = "models"


@asynccontextmanager
async def changing(db: Database, state: State) -> AsyncIterator[AsyncConnection]:
    """A transaction that changes the registry, one at a time of all processes; then everybody is told.

    A message that is lost only costs time: the revision tells the same. Raises: Unavailable, with nothing changed.
    """
    async with db.begin() as conn:
        revision = await store.raise_revision(conn)
        yield conn
    with suppress(StateUnavailable):
        await state.publish(CHANNEL, str(revision).encode())
