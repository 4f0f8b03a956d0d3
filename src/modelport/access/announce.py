"""How a change of keys reaches the key rings of every process: a message, a fence, the commit, a message.

1. "A change begins" is published: every ring knows that one is under way.
2. The fence is raised: from now on every `take`, in every process, shows a value that no ring has caught up with.
3. The change is committed.
4. "It is done, up to this fence" is published: rings drop what is old and catch up.

A ring trusts its cache only while the fence is where the last message left it **and** no change is under way, so a
key that was revoked passes nowhere from the instant of the commit, however late the last message comes. Messages of
a channel arrive in order, so a ring that has read the last message of a change has read the first one of every
change whose fence is lower. Whoever dies in between leaves the rings asking the database for each call, which is
slow and right, until they give the change up (`keyring.GAP_S`).
"""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import msgspec

from modelport.errors import StateUnavailable
from modelport.state.protocol import State

FENCE = "keys"
CHANNEL = "keys"


class News(msgspec.Struct):
    """One of the two messages of a change; `fence` is 0 in the first.

    The second says what to forget: one key (by its hash, hexadecimal) or all keys of an organization.
    """

    change: str
    fence: int = 0
    key_hash: str = ""
    organization_id: str = ""


_encode = msgspec.json.Encoder().encode
decode_news = msgspec.json.Decoder(News).decode


@asynccontextmanager
async def announced(state: State, *, key_hash: str = "", organization_id: str = "") -> AsyncIterator[None]:
    """Commit a change of a key, or of all keys of an organization, inside of this.

    Raises: StateUnavailable before anything was changed.
    """
    change = secrets.token_hex(8)
    await state.publish(CHANNEL, _encode(News(change)))
    fence = await state.raise_fence(FENCE)
    yield
    # The change is committed and the fence is up: a lost message costs time, not safety.
    with suppress(StateUnavailable):
        await state.publish(CHANNEL, _encode(News(change, fence, key_hash, organization_id)))
