"""State that the processes of one host share, in a SQLite file. Each operation is one short transaction.

The arithmetic is `windows.py`'s, between reading a bucket's row and writing it back under the file's write lock.
SQLite is called on the event loop: a transaction takes some 20 µs, less than handing it to a thread and back. Only
when another process has the lock for longer does a task step aside and let the loop go on.
"""

from __future__ import annotations

import asyncio
import os
import random
import sqlite3
from array import array
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, suppress
from pathlib import Path
from typing import TypeVar

from modelport.errors import StateUnavailable
from modelport.kit.clock import Clock
from modelport.state.inbox import Inbox
from modelport.state.protocol import HOLD_TTL_S, PURSE_TTL_S, Bucket, Level, Subscription, Taken
from modelport.state.purses import Unrecorded, hold_key
from modelport.state.sqlite_channels import SqliteChannels
from modelport.state.sqlite_file import open_file
from modelport.state.windows import SLOTS, Holds, Meter, Purse, Window, changes, check, level, take_all

T = TypeVar("T")

RENEW_INTERVAL_S = HOLD_TTL_S / 3
# Another worker's transaction is over in some 20 µs, so the lock is tried again at once this often…
_SPINS = 12
# …then after pauses that let the event loop work, and in all for this long.
_PAUSE_FIRST_S, _PAUSE_MOST_S = 0.0005, 0.02
BUSY_LIMIT_S = 2.0
# Rows looked at for expiry each time that this many were added: what is dead never outgrows what lives by much.
_SWEEP_EVERY, _SWEEP_ROWS = 64, 256
_FORGET_OWNER_US = 3_600_000_000
_BUSY = (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)


class SqliteState:
    """`State` in the file `path`, for any number of processes of this host."""

    def __init__(self, path: Path, clock: Clock) -> None:
        self._path = path
        self._clock = clock
        self._file: sqlite3.Connection | None = None
        self._owner = os.urandom(9).hex()
        self._owner_expires_us = 0
        # What this process holds, by bucket: written again should its rows ever be lost.
        self._held: dict[str, int] = {}
        self._unrecorded = Unrecorded()
        # True while the file may know other holds than ours: it has not met us, or a transaction failed.
        self._drifted = True
        self._renewal: asyncio.Task[None] | None = None
        self._channels = SqliteChannels(path, self)
        self._added = 0
        self._swept = ""

    async def start(self) -> None:
        """Open the file, which is made when it is missing. Raises: StateUnavailable when it can't be."""
        try:
            self._file = open_file(self._path)
        except (OSError, sqlite3.Error) as error:
            raise StateUnavailable(internal=f"{self._path}: {error}") from error

    async def close(self) -> None:
        """Give up this process's holds and end its subscriptions."""
        if self._renewal is not None:
            self._renewal.cancel()
            await asyncio.gather(self._renewal, return_exceptions=True)
            self._renewal = None
        self._channels.close()
        if self._file is not None:
            # Where that fails, the holds expire.
            with suppress(StateUnavailable):
                await self.write(self._forget_owner)
            self._file.close()
            self._file = None

    async def ping(self) -> None:
        await self.write(lambda file: file.execute("SELECT 1").fetchone())

    async def take(self, id: str, buckets: Sequence[Bucket], *, fence: str = "") -> Taken:
        check(buckets)
        taken = await self.write(lambda file: self._take(file, id, buckets, fence))
        if taken.refused < 0:
            for bucket in buckets:
                if bucket.window_s <= 0 and bucket.amount:
                    self._count(_hold_key(bucket), bucket.amount)
        return taken

    async def settle(self, taken: Taken, amounts: Sequence[int]) -> None:
        found = changes(taken, amounts)
        if not found:
            return
        try:
            await self.write(lambda file: self._settle(file, found))
        except BaseException:
            self._drifted = True
            for bucket, charge, _ in found:
                if bucket.window_s < 0 and charge:
                    self._unrecorded.doubt(bucket.key, charge)
                    self._count(hold_key(bucket.key), charge)
            raise
        finally:
            # Not before: a renewal that comes in between writes what the file then lets go of.
            for bucket, _, change in found:
                if bucket.window_s <= 0 and change:
                    self._count(_hold_key(bucket), change)

    async def peek(self, buckets: Sequence[Bucket]) -> list[Level]:
        return await self.read(lambda file: self._peek(file, buckets))

    async def raise_spent(self, spent: Mapping[str, int]) -> None:
        now_us = self._clock.now_us()
        rows = [(key, amount, now_us + _micros(PURSE_TTL_S)) for key, amount in spent.items()]

        def work(file: sqlite3.Connection) -> None:
            file.execute(_FORGET_PURSES, (now_us,))
            file.executemany(_RAISE_SPENT, rows)

        await self.write(work)

    async def recorded(self) -> None:
        """The file outlives its processes, so what it may lack is only what could not be written."""
        for key, amount in self._unrecorded.rotate().items():
            self._count(hold_key(key), -amount)
            self._drifted = True

    async def raise_fence(self, name: str) -> int:
        now_us = self._clock.now_us()
        rows = await self.write(lambda file: file.execute(_RAISE_FENCE, (name, now_us)).fetchall())
        return int(rows[0][0])

    async def get(self, key: str) -> bytes | None:
        now_us = self._clock.now_us()
        row = await self.read(lambda file: file.execute(_GET_VALUE, ("value:" + key, now_us)).fetchone())
        return None if row is None else bytes(row[0])

    async def set(self, key: str, value: bytes, *, ttl_s: float) -> None:
        await self.write(lambda file: self._put(file, _SET_VALUE, "value:" + key, value, ttl_s))

    async def add(self, key: str, value: bytes, *, ttl_s: float) -> bool:
        return await self.write(lambda file: self._put(file, _ADD_VALUE, "value:" + key, value, ttl_s))

    async def delete(self, key: str) -> None:
        await self.write(lambda file: file.execute("DELETE FROM vals WHERE key = ?", ("value:" + key,)))

    async def lease(self, key: str, owner: str, *, ttl_s: float) -> bool:
        return await self.write(lambda file: self._put(file, _LEASE, "lease:" + key, owner.encode(), ttl_s))

    async def release(self, key: str, owner: str) -> None:
        row = ("lease:" + key, owner.encode())
        await self.write(lambda file: file.execute("DELETE FROM vals WHERE key = ? AND value = ?", row))

    async def publish(self, channel: str, message: bytes) -> None:
        await self._channels.publish(channel, message, now_us=self._clock.now_us())

    def subscribe(self, channel: str) -> AbstractAsyncContextManager[Subscription]:
        return self._channels.subscribe(Inbox(channel))

    async def write(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """`work`'s answer, done in one transaction with the write lock. Raises: StateUnavailable (nothing is done)."""
        return await self._patiently(work, begin="BEGIN IMMEDIATE")

    async def read(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """`work`'s answer from one unchanging view of the file. Raises: StateUnavailable."""
        return await self._patiently(work, begin="BEGIN")

    async def _patiently(self, work: Callable[[sqlite3.Connection], T], *, begin: str) -> T:
        pause_s, give_up_s = _PAUSE_FIRST_S, 0.0
        while True:
            for _ in range(_SPINS):
                try:
                    return self._transact(work, begin)
                except sqlite3.Error as error:
                    if getattr(error, "sqlite_errorcode", 0) & 0xFF not in _BUSY:
                        raise StateUnavailable(internal=f"{self._path}: {error}") from error
                os.sched_yield()
            now_s = asyncio.get_running_loop().time()
            give_up_s = give_up_s or now_s + BUSY_LIMIT_S
            if now_s >= give_up_s:
                raise StateUnavailable(internal=f"{self._path}: another process kept the lock for {BUSY_LIMIT_S} s")
            await asyncio.sleep(pause_s * random.uniform(0.5, 1.0))  # noqa: S311 - spread, not secrecy
            pause_s = min(2 * pause_s, _PAUSE_MOST_S)

    def _transact(self, work: Callable[[sqlite3.Connection], T], begin: str) -> T:
        file = self._file
        if file is None:
            raise StateUnavailable(internal="the state is not open")
        file.execute(begin)
        try:
            answer = work(file)
            file.execute("COMMIT")
        except BaseException:
            if file.in_transaction:
                file.execute("ROLLBACK")
            self._drifted = True
            raise
        return answer

    def _take(self, file: sqlite3.Connection, id: str, buckets: Sequence[Bucket], fence: str) -> Taken:
        # The clock is read under the lock, so that a process that waited for it does not bring an older time.
        now_us = self._clock.now_us()
        # Before anything is counted: a process that was stopped for long counts its own holds first.
        if (self._drifted or now_us >= self._owner_expires_us - _micros(RENEW_INTERVAL_S)) and not all(
            bucket.window_s > 0 for bucket in buckets
        ):
            self._renew(file)
        meters = self._meters(file, buckets, now_us)
        value = self._fence(file, fence, now_us) if fence else 0
        taken = take_all(id, buckets, meters, now_us=now_us, fence=value)
        if taken.refused < 0:
            rows = []
            for bucket, meter in zip(buckets, meters, strict=True):
                if isinstance(meter, Window):
                    rows.append(_row(bucket, meter))
                    continue
                if bucket.amount:
                    file.execute(_HOLD, (_hold_key(bucket), self._owner, bucket.amount))
                if bucket.window_s:
                    file.execute(_USE_PURSE, (now_us + _micros(PURSE_TTL_S), bucket.key))
            if rows:
                file.executemany(_PUT_RATE, rows)
            self._sweep(file, now_us)
        return taken

    def _meters(self, file: sqlite3.Connection, buckets: Sequence[Bucket], now_us: int) -> list[Meter]:
        meters: list[Meter] = []
        for bucket in buckets:
            if bucket.window_s <= 0:
                held = file.execute(_COUNT_HELD, (_hold_key(bucket), now_us)).fetchone()[0] or 0
                meters.append(Purse(_spent(file, bucket.key), held) if bucket.window_s else Holds(held))
                continue
            window = Window(bucket.window_s, now_us)
            row = file.execute(_GET_RATE, (_rate_key(bucket),)).fetchone()
            if row is None:
                self._added += 1
            else:
                _load(window, row).advance(now_us)
            meters.append(window)
        return meters

    def _settle(self, file: sqlite3.Connection, found: Sequence[tuple[Bucket, int, int]]) -> None:
        for bucket, mark, change in found:
            if bucket.window_s <= 0:
                key = _hold_key(bucket)
                file.execute(_RELEASE, (change, key, self._owner))
                file.execute(_DROP_RELEASED, (key, self._owner))
                if bucket.window_s:
                    file.execute("UPDATE purses SET spent = spent + ? WHERE key = ?", (mark, bucket.key))
                continue
            row = file.execute(_GET_RATE, (_rate_key(bucket),)).fetchone()
            if row is not None:
                window = _load(Window(bucket.window_s, 0), row)
                if window.correct(mark, change):
                    file.execute(_PUT_RATE, _row(bucket, window))

    def _peek(self, file: sqlite3.Connection, buckets: Sequence[Bucket]) -> list[Level]:
        now_us = self._clock.now_us()
        meters = self._meters(file, buckets, now_us)
        return [level(bucket, meter, now_us) for bucket, meter in zip(buckets, meters, strict=True)]

    def _fence(self, file: sqlite3.Connection, name: str, now_us: int) -> int:
        row = file.execute("SELECT value FROM fences WHERE name = ?", (name,)).fetchone()
        if row is None:
            row = file.execute(_RAISE_FENCE, (name, now_us)).fetchone()
        return int(row[0])

    def _put(self, file: sqlite3.Connection, statement: str, key: str, value: bytes, ttl_s: float) -> bool:
        now_us = self._clock.now_us()
        file.execute(_FORGET_VALUES, (now_us,))
        return file.execute(statement, (key, value, now_us + _micros(ttl_s), now_us)).rowcount > 0

    def _count(self, key: str, change: int) -> None:
        left = self._held.get(key, 0) + change
        if left:
            self._held[key] = left
        else:
            del self._held[key]
        if self._renewal is None:
            self._renewal = asyncio.create_task(self._keep_renewed(), name="sqlite-state-holds")

    async def _keep_renewed(self) -> None:
        """Renew while anything is held, and end: an idle process does nothing."""
        try:
            while self._held or self._drifted:
                await asyncio.sleep(RENEW_INTERVAL_S)
                if self._held or self._drifted:
                    await self._renew_again()
        finally:
            self._renewal = None

    async def _renew_again(self) -> None:
        try:
            await self.write(self._renew)
        except StateUnavailable:
            # Tried again at the next interval; two may fail before a hold expires.
            return

    def _renew(self, file: sqlite3.Connection) -> None:
        now_us = self._clock.now_us()
        expires_us = now_us + _micros(HOLD_TTL_S)
        renewed = file.execute("UPDATE owners SET expires_us = ? WHERE owner = ?", (expires_us, self._owner)).rowcount
        if self._drifted or not renewed:
            # New, or away for so long that others have cleared its rows: everything it holds is counted again.
            file.execute("INSERT OR REPLACE INTO owners VALUES (?, ?)", (self._owner, expires_us))
            file.execute("DELETE FROM holds WHERE owner = ?", (self._owner,))
            file.executemany(_HOLD, [(key, self._owner, count) for key, count in self._held.items()])
            self._forget_dead_owners(file, now_us)
            self._drifted = False
        self._owner_expires_us = expires_us

    def _forget_dead_owners(self, file: sqlite3.Connection, now_us: int) -> None:
        """Clear what processes left that died long ago. Expired ones do not count, but may only have been stopped."""
        dead = file.execute("SELECT owner FROM owners WHERE expires_us < ?", (now_us - _FORGET_OWNER_US,)).fetchall()
        file.executemany("DELETE FROM holds WHERE owner = ?", dead)
        file.executemany("DELETE FROM owners WHERE owner = ?", dead)

    def _forget_owner(self, file: sqlite3.Connection) -> None:
        file.execute("DELETE FROM holds WHERE owner = ?", (self._owner,))
        file.execute("DELETE FROM owners WHERE owner = ?", (self._owner,))

    def _sweep(self, file: sqlite3.Connection, now_us: int) -> None:
        """Once in a while, forget the expired among the next few rows."""
        if self._added < _SWEEP_EVERY:
            return
        self._added = 0
        rows = file.execute(_NEXT_RATES, (self._swept, _SWEEP_ROWS)).fetchall()
        self._swept = rows[-1][0] if len(rows) == _SWEEP_ROWS else ""
        file.executemany("DELETE FROM rates WHERE key = ?", [(key,) for key, expires in rows if expires <= now_us])


def _hold_key(bucket: Bucket) -> str:
    return hold_key(bucket.key) if bucket.window_s else bucket.key


def _spent(file: sqlite3.Connection, key: str) -> int | None:
    row = file.execute("SELECT spent FROM purses WHERE key = ?", (key,)).fetchone()
    return None if row is None else int(row[0])


def _rate_key(bucket: Bucket) -> str:
    return f"{bucket.window_s}:{bucket.key}"


def _load(window: Window, row: tuple[int, int, bytes]) -> Window:
    window.newest, window.total = row[0], row[1]
    window.amounts = array("q", row[2])
    return window


def _row(bucket: Bucket, window: Window) -> tuple[str, int, int, bytes, int]:
    expires_us = (window.newest + SLOTS) * window.sub_us
    return _rate_key(bucket), window.newest, window.total, window.amounts.tobytes(), expires_us


def _micros(seconds: float) -> int:
    return round(seconds * 1_000_000)


_GET_RATE = "SELECT newest, total, amounts FROM rates WHERE key = ?"
# An update in place: replacing the row would delete it and put it back, at half as much again.
_PUT_RATE = """INSERT INTO rates (key, newest, total, amounts, expires_us) VALUES (?, ?, ?, ?, ?)
    ON CONFLICT (key) DO UPDATE SET newest = excluded.newest, total = excluded.total, amounts = excluded.amounts,
    expires_us = excluded.expires_us"""
_NEXT_RATES = "SELECT key, expires_us FROM rates WHERE key > ? ORDER BY key LIMIT ?"
_COUNT_HELD = """SELECT sum(count) FROM holds JOIN owners USING (owner) WHERE key = ? AND expires_us > ?"""
_HOLD = """INSERT INTO holds (key, owner, count) VALUES (?, ?, ?)
    ON CONFLICT (key, owner) DO UPDATE SET count = count + excluded.count"""
_RELEASE = "UPDATE holds SET count = count + ? WHERE key = ? AND owner = ?"
_DROP_RELEASED = "DELETE FROM holds WHERE key = ? AND owner = ? AND count <= 0"
_RAISE_SPENT = """INSERT INTO purses (key, spent, expires_us) VALUES (?, ?, ?)
    ON CONFLICT (key) DO UPDATE SET spent = max(spent, excluded.spent), expires_us = excluded.expires_us"""
_USE_PURSE = "UPDATE purses SET expires_us = ? WHERE key = ?"
_FORGET_PURSES = "DELETE FROM purses WHERE key IN (SELECT key FROM purses WHERE expires_us <= ? LIMIT 4)"
# Never a value that the fence had before, even in a file made anew.
_RAISE_FENCE = """INSERT INTO fences (name, value) VALUES (?, ?)
    ON CONFLICT (name) DO UPDATE SET value = max(value + 1, excluded.value) RETURNING value"""
_GET_VALUE = "SELECT value FROM vals WHERE key = ? AND expires_us > ?"
_SET_VALUE = """INSERT INTO vals (key, value, expires_us) VALUES (?1, ?2, ?3)
    ON CONFLICT (key) DO UPDATE SET value = ?2, expires_us = ?3 WHERE ?4 = ?4"""
_ADD_VALUE = """INSERT INTO vals (key, value, expires_us) VALUES (?1, ?2, ?3)
    ON CONFLICT (key) DO UPDATE SET value = ?2, expires_us = ?3 WHERE vals.expires_us <= ?4"""
_LEASE = """INSERT INTO vals (key, value, expires_us) VALUES (?1, ?2, ?3)
    ON CONFLICT (key) DO UPDATE SET value = ?2, expires_us = ?3 WHERE vals.expires_us <= ?4 OR vals.value = ?2"""
_FORGET_VALUES = "DELETE FROM vals WHERE key IN (SELECT key FROM vals WHERE expires_us <= ? LIMIT 4)"
