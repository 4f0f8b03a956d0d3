"""Requests with an `Idempotency-Key`: claimed before they run, kept when they have ended.

A claim is a row with a lease, which the process renews while the call runs. A process that dies renews nothing, and
once the lease has run out the next repeat takes the claim over and runs the request anew. What is promised is decided
by the row's primary key, so it holds for any number of workers and instances on one database.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any

import structlog

from modelport.db.engine import Database
from modelport.errors import Unavailable
from modelport.kit.clock import Clock
from modelport.replay.idempotency import store
from modelport.replay.idempotency.model import Claim, Record
from modelport.replay.idempotency.rules import answer_of
from modelport.settings import IdempotencySettings

# A lease is renewed so often that two renewals may fail before it runs out.
RENEWALS_PER_LEASE = 3
PRUNE_INTERVAL_S = 60.0
# Rows removed in one transaction: few enough that nobody who waits for the database notices.
PRUNE_ROWS = 500
# Answers that wait in memory for a database that is away; about as much as usage events do.
MAX_LATE_BYTES = 10_000_000
CLOSE_TIMEOUT_S = 5.0

log = structlog.get_logger("modelport.replay")


@dataclass(slots=True)
class _Held:
    """A claim of this process. `ended`: its answer is on its way to the table; `late`: it waits for the database."""

    claim: Claim
    on_lost: Callable[[], None]
    ended: bool = False
    late: bool = False
    answer: bytes | None = None

    @property
    def renewable(self) -> bool:
        return self.late or not self.ended

    def record(self) -> Record:
        """What the table says, or will say once the database is back."""
        lease_us = None if self.late else 1
        return Record(self.claim.fingerprint, self.claim.call_id, lease_us, self.answer)


class Idempotency:
    """One per process. Concurrency: any number of tasks of one event loop."""

    def __init__(self, db: Database, *, clock: Clock, settings: IdempotencySettings) -> None:
        self._db = db
        self._clock = clock
        self._settings = settings
        self._held: dict[tuple[str, str], _Held] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._late_bytes = 0
        self._pruned_s = 0.0
        self._tending: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Begin to renew claims and to remove what is out of date."""
        self._tending = asyncio.create_task(self._tend(), name="idempotency")

    async def close(self) -> None:
        """Give back every claim of a call that did not end, so that its repeat need not wait for the lease."""
        if self._tending is not None:
            self._tending.cancel()
            await asyncio.gather(self._tending, return_exceptions=True)
        # What can't be written now is over when the leases are.
        with contextlib.suppress(Unavailable, TimeoutError):
            async with asyncio.timeout(CLOSE_TIMEOUT_S):
                await asyncio.gather(*self._tasks)
                await self._keep_late()
                for held in list(self._held.values()):
                    await self.release(held.claim)

    @property
    def max_answer_bytes(self) -> int:
        """The largest answer that is kept."""
        return self._settings.max_answer_bytes

    async def claim(self, claim: Claim, *, on_lost: Callable[[], None]) -> bytes | None:
        """None when the caller is to run the request, and then to `keep` or `release`; else the answer it had.

        `on_lost` is called if another process takes the claim over because this one could not renew it: the request
        then runs there, and is to be stopped here.
        Raises: IdempotencyInFlight, IdempotencyMismatch, IdempotencyNotKept; Unavailable without the database, since
        running a request that can't be claimed might be running it twice.
        """
        mine = self._held.get(_key_of(claim))
        if mine is not None:
            return answer_of(mine.record(), claim)
        now_us = self._clock.now_us()
        expires_us = now_us + round(self._settings.keep_s * 1_000_000)
        async with self._db.begin() as conn:
            if await store.insert_claim(
                conn, claim=claim, now_us=now_us, lease_us=self._lease_us(now_us), expires_us=expires_us
            ):
                record = None
            else:
                record = await store.find_record(
                    conn, organization_id=claim.organization_id, key_hash=claim.key_hash
                ) or _running(claim)
        if record is not None:
            return answer_of(record, claim)
        self._held[_key_of(claim)] = _Held(claim, on_lost)
        return None

    async def keep(self, claim: Claim, answer: bytes | None) -> None:
        """The request has ended with `answer`; None: one that is too large to keep.

        Call it before the caller gets the answer's last byte: who saw the end must never run the request twice. It
        goes on where the caller is cancelled meanwhile.
        Never raises: while the database is away, the claim is renewed and the answer waits in memory.
        """
        held = self._find(claim)
        if held is not None:
            held.ended, held.answer = True, answer
            await self._in_background(self._keep(held))

    async def release(self, claim: Claim) -> None:
        """The request ended with nothing that is kept: its key is free. Never raises; at worst the lease runs out."""
        if self._find(claim) is not None:
            del self._held[_key_of(claim)]
            await self._in_background(self._delete(claim))

    def abandon(self, claim: Claim) -> None:
        """As `release`, without waiting: nobody is left who would repeat it at once."""
        if self._find(claim) is not None:
            del self._held[_key_of(claim)]
            self._in_background(self._delete(claim))

    async def renew(self) -> None:
        """Extend the lease of every claim; those that another process took over are lost. Raises: Unavailable."""
        running = [held for held in self._held.values() if held.renewable]
        if not running:
            return
        call_ids = [held.claim.call_id for held in running]
        lease_us = self._lease_us(self._clock.now_us())
        async with self._db.begin() as conn:
            renewed = await store.renew_claims(conn, call_ids=call_ids, lease_us=lease_us)
        for held in running:
            # One that ended while the statement ran is lost to nobody.
            if held.claim.call_id not in renewed and held.renewable and self._find(held.claim) is held:
                self._drop(held)
                log.warning("idempotency_claim_lost", call_id=held.claim.call_id)
                held.on_lost()

    async def prune(self) -> int:
        """Remove what is out of date; how many rows there were. Raises: Unavailable."""
        total = 0
        while True:
            async with self._db.begin() as conn:
                found = await store.delete_expired(conn, now_us=self._clock.now_us(), most=PRUNE_ROWS)
            total += found
            if found < PRUNE_ROWS:
                return total

    async def _tend(self) -> None:
        interval_s = self._settings.lease_s / RENEWALS_PER_LEASE
        while True:
            await asyncio.sleep(interval_s)
            try:
                await self._keep_late()
                await self.renew()
                if self._clock.monotonic_s() - self._pruned_s >= PRUNE_INTERVAL_S:
                    self._pruned_s = self._clock.monotonic_s()
                    await self.prune()
            except Exception as error:  # noqa: BLE001  The worker loop: leases must be renewed whatever failed before.
                log.warning("idempotency_not_tended", claims=len(self._held), reason=f"{error!r:.300}")

    async def _keep_late(self) -> None:
        for held in [held for held in self._held.values() if held.late]:
            await self._write(held)

    async def _keep(self, held: _Held) -> None:
        try:
            await self._write(held)
        except Unavailable:
            self._wait(held)

    async def _write(self, held: _Held) -> None:
        async with self._db.begin() as conn:
            kept = await store.update_kept(conn, claim=held.claim, answer=held.answer)
        self._drop(held)
        if not kept:
            log.warning("idempotency_claim_lost", call_id=held.claim.call_id)

    async def _delete(self, claim: Claim) -> None:
        with contextlib.suppress(Unavailable):
            async with self._db.begin() as conn:
                await store.delete_claim(conn, claim=claim)

    def _wait(self, held: _Held) -> None:
        size_bytes = len(held.answer or b"")
        if self._late_bytes + size_bytes > MAX_LATE_BYTES:
            # A repeat is told that it ran, and is not given what it answered.
            held.answer, size_bytes = None, 0
        held.late = True
        self._late_bytes += size_bytes
        log.warning("idempotent_answer_waits", call_id=held.claim.call_id, waiting_bytes=self._late_bytes)

    def _find(self, claim: Claim) -> _Held | None:
        held = self._held.get(_key_of(claim))
        return held if held is not None and held.claim.call_id == claim.call_id else None

    def _drop(self, held: _Held) -> None:
        if self._find(held.claim) is held:
            del self._held[_key_of(held.claim)]
            if held.late:
                self._late_bytes -= len(held.answer or b"")

    def _in_background(self, work: Coroutine[Any, Any, None]) -> asyncio.Future[None]:
        """Have `work` done whatever becomes of the caller, who may wait for it."""
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return asyncio.shield(task)

    def _lease_us(self, now_us: int) -> int:
        return now_us + round(self._settings.lease_s * 1_000_000)


def _key_of(claim: Claim) -> tuple[str, str]:
    return claim.organization_id, claim.key_hash


def _running(claim: Claim) -> Record:
    """What is said of a claim that was given back in the very moment between two statements: it ran until then."""
    return Record(claim.fingerprint, claim.call_id, lease_us=1, answer=None)
