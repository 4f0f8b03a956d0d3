"""State that any number of machines share, in Redis (6.2 or newer, or Valkey).

Each take is one Lua script on one connection per process. Time is the Redis server's, so that machines agree. A
hold belongs to the *connection* it was taken on; when a connection is lost, or Redis lost its memory, the next one
registers with everything that this process still holds, so what is counted is what is true, whatever was in flight.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import os
import random
import re
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from importlib import resources
from typing import Any

from modelport.errors import StateUnavailable
from modelport.kit.clock import Clock
from modelport.state.inbox import Inbox
from modelport.state.protocol import (
    HOLD_RETRY_S,
    HOLD_TTL_S,
    MAX_MESSAGE_BYTES,
    PURSE_TTL_S,
    SUB_WINDOWS,
    Bucket,
    Level,
    PurseLevel,
    Subscription,
    Taken,
)
from modelport.state.purses import Unrecorded, hold_key
from modelport.state.redis_address import parse_address
from modelport.state.redis_link import CommandFailed, Link, Word
from modelport.state.windows import changes, check

# An answer takes well under a millisecond; whoever waits a second is better told to come back.
COMMAND_TIMEOUT_S = 1.0
RENEW_INTERVAL_S = HOLD_TTL_S / 5
_RECONNECT_FIRST_S, _RECONNECT_MOST_S = 0.05, 1.0
# Windows of a test's clock, which may stand still, outlive the test.
_TEST_SPARE_MS = 3_600_000
_REGISTRATIONS = 3
_log = logging.getLogger(__name__)


class RedisState:
    """`State` on one Redis. `clock` replaces the server's time, for tests."""

    def __init__(self, url: str, *, namespace: str = "modelport", clock: Clock | None = None) -> None:
        self._address = parse_address(url)
        self._prefix = namespace + ":"
        self._clock = clock
        self._scripts = _Scripts()
        self._link: Link | None = None
        self._owner = ""
        # What this process holds, by bucket: the truth that Redis is told when it may know another.
        self._held: dict[str, int] = {}
        self._unrecorded = Unrecorded()
        # The run of the Redis that we are connected to, and of the one that knew the earlier owner.
        self._run_id = self._earlier_run_id = ""
        self._drifted = False
        self._inboxes: dict[bytes, set[Inbox]] = {}
        self._keeper: asyncio.Task[None] | None = None
        self._tried = asyncio.Event()

    async def start(self) -> None:
        self._keeper = asyncio.create_task(self._keep_connected(), name="redis-state")
        await self._tried.wait()

    async def close(self) -> None:
        """Give up this process's holds and end its subscriptions."""
        if self._keeper is not None:
            self._keeper.cancel()
            await asyncio.gather(self._keeper, return_exceptions=True)
        link = self._link
        if link is not None:
            try:
                await link.request("HDEL", self._prefix + "owners", self._owner)
            except StateUnavailable:
                _log.debug("Redis was gone before the holds could be given up; they expire")
            link.abort("the state is closed")

    async def ping(self) -> None:
        await self._ready().request("PING")

    async def take(self, id: str, buckets: Sequence[Bucket], *, fence: str = "") -> Taken:
        check(buckets)
        words: list[Word] = []
        for bucket in buckets:
            words += (bucket.key, bucket.limit, bucket.window_s, bucket.amount)
        for _ in range(_REGISTRATIONS):
            owner = self._owner
            decode = partial(self._taken, id, buckets)
            head = self._take_head(owner, fence, "0")
            with self._watching_for_drift():
                taken: Taken | None = await self._run("take", *head, *words, decode=decode, orphan=self._give_back)
            if taken is not None:
                return taken
            await self._register_again(owner)
        raise StateUnavailable(internal="Redis forgets this process again and again")

    async def settle(self, taken: Taken, amounts: Sequence[int]) -> None:
        words, charges = self._settlement(taken, amounts)
        if words:
            try:
                with self._watching_for_drift():
                    await self._run("settle", self._prefix, self._owner, self._run_id, *words)
            except BaseException:
                for key, charge in charges:
                    self._unrecorded.doubt(key, charge)
                    self._count(hold_key(key), charge)
                raise

    async def peek(self, buckets: Sequence[Bucket]) -> list[Level]:
        words: list[Word] = []
        for bucket in buckets:
            words += (bucket.key, bucket.limit, bucket.window_s, 0)
        reply: list[int] = await self._run("take", *self._take_head(self._owner, "", "1"), *words)
        return _levels(buckets, reply)

    async def raise_spent(self, spent: Mapping[str, int]) -> None:
        words: list[Word] = []
        for key, amount in spent.items():
            words += (key, amount)
        await self._run("raise_spent", self._prefix, self._run_id, *words)

    async def recorded(self) -> None:
        """What is held for the record's sake is let go of at the next renewal."""
        for key, amount in self._unrecorded.rotate().items():
            self._count(hold_key(key), -amount)
            self._drifted = True

    async def raise_fence(self, name: str) -> int:
        value: int = await self._run("raise_fence", self._prefix, self._now(), name)
        return value

    async def get(self, key: str) -> bytes | None:
        value: bytes | None = await self._ready().request("GET", self._value(key))
        return value

    async def set(self, key: str, value: bytes, *, ttl_s: float) -> None:
        await self._ready().request("SET", self._value(key), value, "PX", _millis(ttl_s))

    async def add(self, key: str, value: bytes, *, ttl_s: float) -> bool:
        reply = await self._ready().request("SET", self._value(key), value, "NX", "PX", _millis(ttl_s))
        return reply is not None

    async def delete(self, key: str) -> None:
        await self._ready().request("DEL", self._value(key))

    async def lease(self, key: str, owner: str, *, ttl_s: float) -> bool:
        return bool(await self._run("lease", f"{self._prefix}lease:{key}", owner, _millis(ttl_s)))

    async def release(self, key: str, owner: str) -> None:
        await self._run("lease", f"{self._prefix}lease:{key}", owner)

    async def publish(self, channel: str, message: bytes) -> None:
        if len(message) > MAX_MESSAGE_BYTES:
            raise ValueError(f"a message has at most {MAX_MESSAGE_BYTES} bytes")
        await self._ready().request("PUBLISH", self._channel(channel), message)

    @asynccontextmanager
    async def subscribe(self, channel: str) -> AsyncIterator[Subscription]:
        link, name = self._ready(), self._channel(channel)
        inbox = Inbox(channel)
        self._inboxes.setdefault(name, set()).add(inbox)
        try:
            await link.request("SUBSCRIBE", name)
            yield inbox
        finally:
            inbox.lose()
            inboxes = self._inboxes.get(name, set())
            inboxes.discard(inbox)
            if not inboxes and self._inboxes.pop(name, None) is not None:
                link.send("UNSUBSCRIBE", name)

    def _ready(self) -> Link:
        if self._link is None:
            raise StateUnavailable(internal="Redis: not connected")
        return self._link

    async def _run(self, script: str, *words: Word, decode: Any = None, orphan: Any = None) -> Any:
        """The script's answer. A result that nobody waits for any more goes to `orphan`."""
        link = self._ready()
        future = link.request("EVALSHA", self._scripts.sha(script), 0, *words, decode=decode, orphan=orphan)
        try:
            try:
                return await future
            except CommandFailed as failed:
                # Somebody flushed the scripts. This one was not run, so it can be sent again, whole.
                if "NOSCRIPT" not in (failed.internal or ""):
                    raise
                future = link.request("EVAL", self._scripts.text(script), 0, *words, decode=decode, orphan=orphan)
                return await future
        except asyncio.CancelledError:
            # Cancelled between the answer's arrival and this task's turn: the future is done, not cancelled.
            if orphan is not None and future.done() and not future.cancelled() and future.exception() is None:
                orphan(future.result())
            raise

    def _taken(self, id: str, buckets: Sequence[Bucket], reply: list[int]) -> Taken | None:
        """The answer to a take, or None when Redis does not know this owner (any more)."""
        refused = reply[0]
        if refused == -2:
            return None
        if refused < 0:
            for bucket in buckets:
                if bucket.window_s <= 0 and bucket.amount:
                    self._count(_hold_key(bucket), bucket.amount)
        retry_after_s = None if reply[1] < 0 else reply[1] / 1_000_000
        return Taken(id, _levels(buckets, reply), refused, retry_after_s, reply[2], reply[3], reply[6::3])

    def _settlement(self, taken: Taken, amounts: Sequence[int]) -> tuple[list[Word], list[tuple[str, int]]]:
        """What to send, and what it charges to which purses."""
        words: list[Word] = []
        charges = []
        for bucket, mark, change in changes(taken, amounts):
            words += (bucket.key, bucket.window_s, mark, change)
            if bucket.window_s <= 0 and change:
                self._count(_hold_key(bucket), change)
            if bucket.window_s < 0 and mark:
                self._unrecorded.charge(bucket.key, mark)
                charges.append((bucket.key, mark))
        return words, charges

    def _count(self, key: str, change: int) -> None:
        left = self._held.get(key, 0) + change
        if left:
            self._held[key] = left
        else:
            self._held.pop(key, None)

    def _give_back(self, taken: Taken | None) -> None:
        if taken is not None and taken.allowed:
            words, _ = self._settlement(taken, [0] * len(taken.levels))
            try:
                if words:
                    head = (self._scripts.sha("settle"), 0, self._prefix, self._owner, self._run_id)
                    self._ready().request("EVALSHA", *head, *words).add_done_callback(self._given_back)
            except StateUnavailable:
                self._drifted = True

    def _given_back(self, future: asyncio.Future[Any]) -> None:
        if not future.cancelled() and future.exception() is not None:
            self._drifted = True

    @contextmanager
    def _watching_for_drift(self) -> Iterator[None]:
        """A command that failed on a living connection may leave Redis with other holds than ours."""
        try:
            yield
        except BaseException:
            self._drifted = True
            raise

    def _take_head(self, owner: str, fence: str, peek: str) -> tuple[Word, ...]:
        return self._prefix, self._now(), owner, fence, _TEST_SPARE_MS if self._clock else 0, peek, self._run_id

    def _now(self) -> int:
        return self._clock.now_us() if self._clock is not None else 0

    def _value(self, key: str) -> str:
        return f"{self._prefix}value:{key}"

    def _channel(self, channel: str) -> bytes:
        return f"{self._prefix}channel:{channel}".encode()

    async def _keep_connected(self) -> None:
        delay_s = 0.0
        while True:
            try:
                link = await self._connect()
            except (OSError, StateUnavailable) as error:
                if not delay_s:
                    _log.warning("Redis can't be reached: %s", getattr(error, "internal", None) or error)
                self._tried.set()
                delay_s = min(max(2 * delay_s, _RECONNECT_FIRST_S), _RECONNECT_MOST_S)
                # Many processes lose the same Redis at the same moment, and should not come back as one.
                await asyncio.sleep(delay_s * random.uniform(0.5, 1.0))  # noqa: S311 - spread, not secrecy
                continue
            if delay_s:
                _log.warning("Redis is reached again")
            delay_s = 0.0
            self._tried.set()
            await self._tend(link)

    async def _connect(self) -> Link:
        address = self._address
        loop = asyncio.get_running_loop()
        async with asyncio.timeout(2 * COMMAND_TIMEOUT_S):
            _, link = await loop.create_connection(self._new_link, address.host, address.port, ssl=address.tls)
            try:
                credentials = ("AUTH", address.username, address.password) if address.password else ()
                hello = link.request("HELLO", 3, *credentials, "SETNAME", "modelport")
                await hello
                await link.request("SELECT", address.database)
                await asyncio.gather(*(link.request("SCRIPT", "LOAD", text) for text in self._scripts.texts()))
                self._run_id = await _run_of(link)
                registered = self._register(link)
                # From this very moment: what is released now must follow the registration that still counts it.
                self._link = link
                await registered
            except BaseException:
                link.abort("Redis: the greeting failed")
                raise
        return link

    def _new_link(self) -> Link:
        return Link(timeout_s=COMMAND_TIMEOUT_S, on_message=self._receive, on_lost=self._lost)

    async def _tend(self, link: Link) -> None:
        """Renew this process's holds until the connection is lost; an idle connection is noticed dead by it too."""
        while not link.closed.is_set():
            try:
                async with asyncio.timeout(RENEW_INTERVAL_S):
                    await link.closed.wait()
            except TimeoutError:
                await self._renew()

    async def _renew(self) -> None:
        owner = self._owner
        try:
            if self._drifted or not await self._run("renew", self._prefix, self._now(), _micros(HOLD_TTL_S), owner):
                await self._register_again(owner)
        except StateUnavailable as error:
            _log.warning("the holds of this process could not be renewed: %s", error.internal)

    async def _register_again(self, owner: str) -> None:
        # Several takes learn of it at once; the first of them registers, and theirs follow on the same connection.
        if self._owner == owner:
            await self._register(self._ready())

    def _register(self, link: Link) -> asyncio.Future[Any]:
        """Become a new owner with all that is held, in place of the earlier; what is sent from now on is the new's."""
        earlier, self._owner = self._owner, os.urandom(9).hex()
        self._drifted = False
        words: list[Word] = []
        for key, count in self._held.items():
            words += (key, count)
        lately = self._unrecorded.charged()
        for key, amount in lately.items():
            words += (hold_key(key), amount)
        same_run = int(self._earlier_run_id in ("", self._run_id))
        self._earlier_run_id = self._run_id
        head = (self._prefix, self._now(), _micros(HOLD_TTL_S), self._owner, earlier, same_run, len(self._held))
        decode = partial(self._registered, lately)
        return link.request("EVAL", self._scripts.text("register"), 0, *head, *words, decode=decode)

    def _registered(self, lately: dict[str, int], lost: int) -> None:
        """Where Redis lost what was charged lately, that is held now."""
        for key, amount in lately.items() if lost else ():
            self._unrecorded.doubt(key, amount)
            self._count(hold_key(key), amount)

    def _receive(self, channel: bytes, message: bytes) -> None:
        for inbox in self._inboxes.get(channel, ()):
            inbox.push(message)

    def _lost(self, link: Link) -> None:
        if self._link is link:
            self._link = None
            inboxes, self._inboxes = self._inboxes, {}
            for one_channel in inboxes.values():
                for inbox in one_channel:
                    inbox.lose()


class _Scripts:
    """The Lua scripts, each whole: the arithmetic in front of what uses it."""

    def __init__(self) -> None:
        folder = resources.files("modelport.state") / "scripts"
        parts = {path.name: path.read_text("utf-8") for path in folder.iterdir() if path.name.endswith(".lua")}
        shared = "".join(parts.pop(name) for name in ("windows.lua", "holds.lua", "purses.lua"))
        constants = {"SUB_WINDOWS": SUB_WINDOWS, "HOLD_RETRY_US": _micros(HOLD_RETRY_S), "PURSE_TTL_S": PURSE_TTL_S}
        for name, value in constants.items():
            shared = shared.replace(f"@{name}@", str(value))
        self._texts = {name.removesuffix(".lua"): shared + text for name, text in parts.items()}
        # Redis names a script by its SHA-1; nothing is protected by it.
        self._shas = {
            name: hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest() for name, text in self._texts.items()
        }

    def sha(self, name: str) -> str:
        return self._shas[name]

    def text(self, name: str) -> str:
        return self._texts[name]

    def texts(self) -> list[str]:
        return list(self._texts.values())


def _levels(buckets: Sequence[Bucket], reply: list[int]) -> list[Level]:
    return [
        Level(bucket, reply[at], reply[at + 1] / 1_000_000)
        if bucket.window_s >= 0
        else _purse_level(bucket, spent=reply[at], held=reply[at + 1])
        for bucket, at in zip(buckets, range(4, len(reply), 3), strict=True)
    ]


def _purse_level(bucket: Bucket, *, spent: int, held: int) -> PurseLevel:
    reset_s = HOLD_RETRY_S if held else 0.0
    if spent < 0:
        return PurseLevel(bucket, 0, reset_s, None, held)
    return PurseLevel(bucket, max(bucket.limit - spent - held, 0), reset_s, spent, held)


def _hold_key(bucket: Bucket) -> str:
    return hold_key(bucket.key) if bucket.window_s else bucket.key


async def _run_of(link: Link) -> str:
    """What tells one run of a Redis server from every other; empty for one that does not say, or not to us."""
    try:
        info: bytes = await link.request("INFO", "server")
    except CommandFailed:
        return ""
    found = re.search(rb"run_id:(\w+)", info)
    return "" if found is None else found[1].decode()


def _millis(seconds: float) -> int:
    return max(1, round(seconds * 1_000))


def _micros(seconds: float) -> int:
    return round(seconds * 1_000_000)
