"""What a key ring remembers: who keys belong to, and which were refused a moment ago. Bounded, least used out first."""

from __future__ import annotations

from collections import OrderedDict

from modelport.access.rules import Network
from modelport.calls import Caller
from modelport.errors import Unauthenticated

# Enough for every broken client of a fleet to be refused without a query, too few to be worth filling.
_MAX_REFUSED = 4_096
_REFUSED_US = 2_000_000


class Entry:
    """One key: who calls, until when that is taken for granted, and what is checked at each use."""

    __slots__ = ("caller", "check_us", "expires_us", "networks")

    def __init__(
        self, caller: Caller, check_us: int, expires_us: int | None, networks: tuple[Network, ...] | None
    ) -> None:
        self.caller = caller
        self.check_us = check_us
        self.expires_us = expires_us
        self.networks = networks


class KeyCache:
    """By SHA-256 of the key. `generation` changes whenever something is forgotten because it may be wrong: what was
    read from the database across such a change is not to be remembered."""

    __slots__ = ("_digests", "_entries", "_most", "_refused", "generation")

    def __init__(self, most: int) -> None:
        self._most = most
        self._entries: OrderedDict[bytes, Entry] = OrderedDict()
        # By the id of the key, which says nothing of the key itself.
        self._digests: dict[str, bytes] = {}
        self._refused: OrderedDict[bytes, tuple[int, str]] = OrderedDict()
        self.generation = 0

    def __len__(self) -> int:
        return len(self._entries)

    def find(self, digest: bytes) -> Entry | None:
        """The key's entry, now the one most recently used."""
        entry = self._entries.get(digest)
        if entry is not None:
            self._entries.move_to_end(digest)
        return entry

    def holds(self, caller: Caller) -> bool:
        """Whether this is what the cache knows of the caller's key now."""
        entry = self._entries.get(self._digests.get(caller.key_id, b""))
        return entry is not None and entry.caller is caller

    def put(self, digest: bytes, entry: Entry) -> None:
        """Remember the key in the place of the one that was not used for longest."""
        self._entries[digest] = entry
        self._digests[entry.caller.key_id] = digest
        self._entries.move_to_end(digest)
        self._refused.pop(digest, None)
        if len(self._entries) > self._most:
            _, dropped = self._entries.popitem(last=False)
            self._digests.pop(dropped.caller.key_id, None)

    def refuse(self, digest: bytes, reason: str, now_us: int) -> None:
        """Remember for a moment that the key is not good."""
        self._drop(digest)
        self._refused[digest] = (now_us + _REFUSED_US, reason)
        if len(self._refused) > _MAX_REFUSED:
            self._refused.popitem(last=False)

    def check_refused(self, digest: bytes, now_us: int) -> None:
        """Raises: Unauthenticated, in the same words, when the key was refused a moment ago."""
        refused = self._refused.get(digest)
        if refused is not None and refused[0] > now_us:
            raise Unauthenticated(refused[1])

    def forget(self, digest: bytes, *, organization_id: str = "") -> None:
        """Forget one key, or all keys of an organization."""
        self.generation += 1
        self._drop(digest)
        self._refused.pop(digest, None)
        if organization_id:
            theirs = [key for key, entry in self._entries.items() if entry.caller.organization_id == organization_id]
            for key in theirs:
                self._drop(key)

    def clear(self) -> None:
        """Forget everything."""
        self.generation += 1
        self._entries.clear()
        self._digests.clear()
        self._refused.clear()

    def _drop(self, digest: bytes) -> None:
        dropped = self._entries.pop(digest, None)
        if dropped is not None:
            self._digests.pop(dropped.caller.key_id, None)
