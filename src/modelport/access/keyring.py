"""Who a key belongs to, from a cache that is used only while it is provably fresh.

The cache knows what it missed in three ways. Messages say what changed. A subscription that may have lost one makes
the ring ask the database for every call, until it has subscribed again and forgotten everything. And `confirm`
compares the fence that the call's own `take` read: when the ring has not caught up with it, the key is read again.
Decision: docs/decisions/0006-keys-and-fences.md.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress

import msgspec

from modelport.access import store
from modelport.access.announce import CHANNEL, FENCE, News, decode_news
from modelport.access.cache import Entry, KeyCache
from modelport.access.model import KeyHolder
from modelport.access.rules import find_mode, hash_key, is_within, parse_networks
from modelport.calls import Caller
from modelport.db.engine import Database
from modelport.errors import ModelportError, PermissionDenied, StateUnavailable, Unauthenticated, Unavailable
from modelport.kit.clock import Clock, rfc3339
from modelport.settings import AccessSettings
from modelport.state.protocol import State, Subscription

# A change that was announced and never finished is given up after this: longer than any commit takes.
GAP_S = 10.0
_RESUBSCRIBE_S = 0.5
# While the database is away, a key whose time in the cache is over is asked for this often.
_RETRY_US = 5_000_000
# Reading a key takes about a millisecond; whoever waits this long is better told to come back.
_READ_TIMEOUT_S = 2.0
_UNKNOWN = "This API key does not exist. Check that it was copied whole, or create a new one."
_REVOKED = "This API key was revoked. Create a new one."


class KeyRing:
    """Concurrency: any number of tasks of one event loop. Start it once the state is started."""

    def __init__(
        self, db: Database, state: State, *, clock: Clock, settings: AccessSettings, gap_s: float = GAP_S
    ) -> None:
        self._db = db
        self._state = state
        self._clock = clock
        self._settings = settings
        self._gap_s = gap_s
        self._ttl_us = round(settings.cache_ttl_s * 1_000_000)
        self._cache = KeyCache(settings.cache_keys)
        self._news: Subscription | None = None
        self._fence = 0
        self._pending: set[str] = set()
        self._gaps: dict[str, asyncio.Task[None]] = {}
        self._loads: dict[bytes, asyncio.Task[Entry | ModelportError]] = {}
        # When keys were last used, by id; no larger than the cache, but for keys read within one interval.
        self._used_us: dict[str, int] = {}
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        """Listen for changes; returns once the cache can be used, or the state turned out to be away."""
        listening = asyncio.Event()
        self._tasks = [
            asyncio.create_task(self._listen(listening), name="keyring-listen"),
            asyncio.create_task(self._touch(), name="keyring-touch"),
        ]
        await listening.wait()

    async def close(self) -> None:
        """Stop, and write when keys were last used. Idempotent."""
        tasks = [*self._tasks, *self._gaps.values(), *self._loads.values()]
        self._tasks = []
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._news = None
        await self._write_used()

    async def authenticate(self, secret: str, *, address: str) -> Caller:
        """Who calls with this key from `address`. A cached key costs no I/O and no pause of the task.

        Raises: Unauthenticated (wrong, unknown, revoked, expired); PermissionDenied (not from this address);
        Unavailable when the key is not cached and the database is away. No message repeats the key.
        """
        now_us = self._clock.now_us()
        news = self._news
        digest = hash_key(secret)
        entry = self._cache.find(digest) if news is not None and news.alive else None
        if entry is None or now_us >= entry.check_us:
            entry = await self._find(secret, digest, entry)
        if entry.networks is not None and not is_within(address, entry.networks):
            raise PermissionDenied(f"This API key may not be used from the address {address or 'of this connection'}.")
        self._used_us[entry.caller.key_id] = now_us
        return entry.caller

    async def confirm(self, secret: str, caller: Caller, fence: int) -> Caller:
        """The caller as of the take that read `fence` (the fence `keys`), or a later moment.

        Raises: Unauthenticated when the key has ended meanwhile; Unavailable when that can't be told.
        """
        news = self._news
        if fence == self._fence and not self._pending and news is not None and news.alive:
            if self._cache.holds(caller):
                return caller
        elif fence != self._fence and news is not None:
            self._expect("fence")
        # Not shared with others who wait for this key: their query may have begun before our take.
        entry = await self._read(hash_key(secret))
        self._check_expiry(entry)
        return entry.caller

    async def _find(self, secret: str, digest: bytes, old: Entry | None) -> Entry:
        """The key's entry, from the database. `old` is one whose time is over, used while the database is away."""
        if old is not None:
            self._check_expiry(old)
        elif find_mode(secret) is None:
            raise Unauthenticated("This is no API key: keys begin with mp_live_ or mp_test_ and have 54 characters.")
        if self._news is None or not self._news.alive:
            entry = await self._read(digest)
        else:
            self._cache.check_refused(digest, self._clock.now_us())
            entry = await self._load(digest, old)
        self._check_expiry(entry)
        return entry

    async def _load(self, digest: bytes, old: Entry | None) -> Entry:
        """Read the key once for all who wait for it; whoever gives up waiting stops nobody else."""
        task = self._loads.get(digest)
        if task is None:
            task = self._loads[digest] = asyncio.create_task(self._outcome(digest))
            task.add_done_callback(lambda _: self._loads.pop(digest, None))
        found = await asyncio.shield(task)
        if isinstance(found, Entry):
            return found
        if old is None or not isinstance(found, Unavailable):
            raise type(found)(found.message, internal=found.internal)
        # The fence still guards it, so it goes on; it is asked for again soon.
        old.check_us = min(self._clock.now_us() + _RETRY_US, old.expires_us or 1 << 62)
        return old

    async def _outcome(self, digest: bytes) -> Entry | ModelportError:
        try:
            return await self._read(digest)
        except (Unauthenticated, Unavailable) as error:
            return error

    async def _read(self, digest: bytes) -> Entry:
        """Read the key and remember what was found, unless anything was forgotten meanwhile."""
        generation = self._cache.generation
        holder = await self._find_holder(digest)
        fresh = generation == self._cache.generation and self._news is not None
        now_us = self._clock.now_us()
        if holder is None or holder.revoked_us is not None:
            reason = _UNKNOWN if holder is None else _REVOKED
            if fresh:
                self._cache.refuse(digest, reason, now_us)
            raise Unauthenticated(reason)
        networks = None if holder.allowed_ips is None else parse_networks(holder.allowed_ips)
        check_us = min(now_us + self._ttl_us, holder.expires_us or 1 << 62)
        entry = Entry(holder.caller, check_us, holder.expires_us, networks)
        if fresh:
            self._cache.put(digest, entry)
        return entry

    async def _find_holder(self, digest: bytes) -> KeyHolder | None:
        try:
            async with asyncio.timeout(_READ_TIMEOUT_S), self._db.connect() as conn:
                return await store.find_holder(conn, key_hash=digest.hex())
        except TimeoutError as error:
            raise Unavailable(
                "API keys can't be looked up for a moment.", internal=f"database: no answer in {_READ_TIMEOUT_S} s"
            ) from error

    def _check_expiry(self, entry: Entry) -> None:
        if entry.expires_us is not None and entry.expires_us <= self._clock.now_us():
            raise Unauthenticated(f"This API key expired at {rfc3339(entry.expires_us)}. Create a new one.")

    async def _listen(self, listening: asyncio.Event) -> None:
        while True:
            # A message that can't be read comes from another version of the program: what it meant is unknown.
            with suppress(StateUnavailable, msgspec.DecodeError):
                await self._follow(listening)
            listening.set()
            await asyncio.sleep(_RESUBSCRIBE_S)

    async def _follow(self, listening: asyncio.Event) -> None:
        """Apply messages until the subscription ends."""
        async with self._state.subscribe(CHANNEL) as news:
            await self._resume()
            self._news = news
            listening.set()
            try:
                async for message in news:
                    self._apply(decode_news(message))
            finally:
                self._news = None

    def _apply(self, news: News) -> None:
        if not news.fence:
            self._pending.add(news.change)
            self._expect(news.change)
            return
        self._pending.discard(news.change)
        self._cache.forget(bytes.fromhex(news.key_hash), organization_id=news.organization_id)
        self._fence = max(self._fence, news.fence)
        gap = self._gaps.pop(news.change, None)
        if gap is not None:
            gap.cancel()

    def _expect(self, what: str) -> None:
        """Start afresh in a while unless the ring has caught up by then."""
        if what not in self._gaps:
            self._gaps[what] = asyncio.create_task(self._give_up(what))

    async def _give_up(self, what: str) -> None:
        await asyncio.sleep(self._gap_s)
        with suppress(StateUnavailable):
            self._pending.discard(what)
            await self._resume()
        self._gaps.pop(what, None)

    async def _resume(self) -> None:
        """Take the fence as it is now for the one that the ring has caught up with, and forget everything.

        Nothing is to be done when the ring turns out to have caught up by itself.
        """
        known = self._fence
        taken = await self._state.take("keyring", (), fence=FENCE)
        if self._news is None or (self._fence == known and taken.fence != known):
            self._cache.clear()
            self._fence = taken.fence

    async def _touch(self) -> None:
        while True:
            await asyncio.sleep(self._settings.touch_interval_s)
            await self._write_used()

    async def _write_used(self) -> None:
        used_us, self._used_us = self._used_us, {}
        if not used_us:
            return
        try:
            async with self._db.begin() as conn:
                await store.touch_keys(conn, used_us=used_us)
        except Unavailable:
            self._used_us = used_us | self._used_us
