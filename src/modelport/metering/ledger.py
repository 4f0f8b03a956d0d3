"""The ledger: every call's usage event, first in the journal, then in the database, there exactly once.

`open` and `close` are what a call pays: one write each to the page cache. A background task commits what was closed
in groups. When the database is away the journal grows, bounded by the disk, and is committed when it is back.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from pathlib import Path

import msgspec
import sqlalchemy.exc
import structlog

from modelport.calls import Call
from modelport.db.engine import Database
from modelport.errors import BadRequest, Unavailable
from modelport.kit.clock import Clock
from modelport.kit.outbox import outbox_of
from modelport.metering import store
from modelport.metering.journal import Journal, JournalFull, Position
from modelport.metering.model import UsageEvent
from modelport.metering.neighbours import Neighbours
from modelport.metering.recovery import batches, recover_orphans
from modelport.observe.metrics import process_metrics
from modelport.settings import MeteringSettings

DIED = "process_died"
# Closed events held in memory, about 10 MB; later ones are read back from the journal.
MAX_QUEUED = 10_000
# How often the journals of other processes are looked at, to bring home those of the dead.
RECOVER_INTERVAL_S = 5.0
FSYNC_INTERVAL_S = 1.0
# Pauses after failed commits double from the commit interval up to this.
MAX_PAUSE_S = 5.0
# How long a stopping process tries to commit; what remains is committed at the next start.
CLOSE_TIMEOUT_S = 5.0
# What one call's tags may take up; the doors' own bounds are far below.
MAX_METADATA_CHARACTERS = 32_000
# No call has this many tokens or images; beyond, an upstream counts wrongly. The cost is what 9 million dollars are.
_MAX_COUNT = 2**31 - 1
_MAX_COST_NANOS = 2**53
_MAX_CODE = 80

_log = structlog.get_logger("modelport.metering")


class Ledger:
    """One per process. Concurrency: everything on the event loop's thread."""

    def __init__(self, db: Database, *, clock: Clock, settings: MeteringSettings, directory: Path) -> None:
        self._db = db
        self._clock = clock
        self._settings = settings
        self._directory = directory
        self._outbox = outbox_of(asyncio.get_running_loop())
        self._journal = Journal(directory, segment_bytes=settings.segment_bytes, flush_soon=self._outbox.flush_soon)
        self._neighbours = Neighbours(directory)
        self._metrics = process_metrics()
        # (number of the close record, event); 0 where the journal could not be written.
        self._queue: deque[tuple[int, UsageEvent]] = deque()
        self._batch: list[tuple[int, UsageEvent]] = []
        self._behind: Position | None = None
        self._committing = asyncio.Lock()
        self._some = asyncio.Event()
        self._enough = asyncio.Event()
        self._unsynced = asyncio.Event()
        # Set when the journals of dead processes were looked at for the first time.
        self._looked = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        self._failing_since_s: float | None = None

    async def start(self) -> None:
        """Open the journal and begin to commit; journals of dead processes are brought home in the background.

        Raises: OSError when the directory can't be written.
        """
        self._journal.start()
        self._outbox.ahead.append(self._write_journal)
        self._tasks = [asyncio.create_task(self._commit_forever()), asyncio.create_task(self._recover_forever())]
        if self._settings.fsync != "never":
            self._tasks.append(asyncio.create_task(self._sync_forever()))

    @property
    def pending(self) -> int:
        """Closed events that the database does not have yet."""
        return self._journal.closes - self._journal.committed

    @property
    def progress(self) -> tuple[int, int]:
        """How many calls were closed, and how many of them, the first ones, the database has."""
        return self._journal.closes, self._journal.committed

    def open(self, call: Call, *, model: str, version: str, backend: str) -> UsageEvent:
        """Record that a call begins. What is recorded is what counts if the process dies in it: status 500, no cost.

        The event that is returned is to be completed and handed to `close`.
        Raises: Unavailable when the disk is full, BadRequest when the metadata is too long; nothing is recorded then.
        """
        if call.metadata and sum(len(name) + len(tag) for name, tag in call.metadata.items()) > MAX_METADATA_CHARACTERS:
            raise BadRequest(f"The metadata is longer than {MAX_METADATA_CHARACTERS:,} characters.", param="metadata")
        caller = call.caller
        event = UsageEvent(
            call_id=call.id,
            organization_id=caller.organization_id,
            project_id=caller.project_id,
            key_id=caller.key_id,
            mode=caller.mode,
            endpoint=call.endpoint,
            model=model,
            version=version,
            backend=backend,
            stream=call.stream,
            status=500,
            error_code=DIED,
            input_tokens=0,
            output_tokens=0,
            cached_tokens=0,
            images=0,
            exact=False,
            cost_nanos=0,
            price_id=None,
            discount_basis_points=caller.discount_basis_points,
            started_us=call.started_us,
            latency_us=0,
            first_token_us=None,
            metadata=call.metadata,
            experiment=call.experiment,
        )
        try:
            self._journal.append_open(event)
        except JournalFull as error:
            raise Unavailable(
                "The call can't be recorded for billing at the moment, so it was not begun.",
                retry_after_s=5.0,
                internal=f"the journal can't be written: {error}",
            ) from error
        return event

    def close(self, event: UsageEvent) -> None:
        """Record a call's end. Never raises: what can't be written stays in memory until committed.

        An event without an `open` before it is recorded as well.
        """
        _fit(event)
        number, position = self._record(event)
        if self._behind is None:
            if len(self._queue) < MAX_QUEUED or position is None:
                self._queue.append((number, event))
                if len(self._queue) >= self._settings.commit_batch:
                    self._enough.set()
            else:
                self._behind = position
        self._some.set()
        self._unsynced.set()

    async def flush(self) -> None:
        """Return when every call that ended before on this host is in the database: this process's, its
        neighbours', and what dead ones left. Other hosts' are there a commit interval after they ended.

        Raises: Unavailable when the database can't be written.
        """
        await self._looked.wait()
        closed = self._journal.closes
        async with self._committing:
            while self._journal.committed < closed and await self._commit_batch():
                pass
            events = await asyncio.to_thread(self._neighbours.read_new, own=self._journal.owner)
            for batch in batches(events, self._settings.commit_batch):
                await self._insert(batch)

    async def close_all(self) -> None:
        """Stop, with everything committed if the database answers in time; the next start commits the rest."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        try:
            async with asyncio.timeout(CLOSE_TIMEOUT_S):
                await self._commit_all()
        except (Unavailable, TimeoutError, sqlalchemy.exc.SQLAlchemyError) as error:
            _log.warning("usage_left_in_journal", events=self.pending, reason=repr(error))
        self._outbox.ahead.remove(self._write_journal)
        self._journal.close()

    def _write_journal(self) -> None:
        """Have the journal hold what this turn of the loop recorded. While it can't, events wait in memory."""
        try:
            self._journal.flush()
        except OSError as error:
            _log.error("usage_not_in_journal", events=self.pending, reason=repr(error))

    def _record(self, event: UsageEvent) -> tuple[int, Position | None]:
        """Write the close record: its number and place, or 0 and None where the journal can't be written."""
        try:
            position = self._journal.append_close(event)
        except OSError as error:
            _log.error("usage_not_in_journal", call_id=event.call_id, reason=repr(error))
            return 0, None
        return self._journal.closes, position

    async def _commit_forever(self) -> None:
        pause_s = self._settings.commit_interval_s
        while True:
            await self._some.wait()
            self._some.clear()
            if self._failing_since_s is not None:
                # A full batch is no reason to press a database that is away.
                await asyncio.sleep(pause_s)
            else:
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._enough.wait(), pause_s)
            self._enough.clear()
            try:
                await self._commit_all()
                pause_s = self._settings.commit_interval_s
                self._say_working()
            except Exception as error:  # noqa: BLE001  The worker loop: whatever fails is said and tried again.
                self._say_failing(error)
                pause_s = min(pause_s * 2, MAX_PAUSE_S)
                self._some.set()
            self._metrics.journal_pending.set(self.pending)
            self._metrics.journal_bytes.set(self._journal.size_bytes)

    async def _commit_all(self) -> None:
        async with self._committing:
            while await self._commit_batch():
                pass

    async def _commit_batch(self) -> bool:
        """Commit the next batch, false when there is none. A batch that fails stays the next one."""
        if not self._batch:
            self._batch = self._next_batch()
            if not self._batch:
                return False
        await self._insert([event for _, event in self._batch])
        highest = max(number for number, _ in self._batch)
        self._batch = []
        self._journal.mark_committed(max(highest, self._journal.committed))
        return True

    def _next_batch(self) -> list[tuple[int, UsageEvent]]:
        most = self._settings.commit_batch
        if not self._queue and self._behind is not None:
            batch, self._behind = self._journal.read_closes(self._behind, most=most)
            return batch
        return [self._queue.popleft() for _ in range(min(most, len(self._queue)))]

    async def _insert(self, events: list[UsageEvent]) -> None:
        """Insert in one transaction; where the database refuses a value in it, each event in its own."""
        try:
            async with self._db.begin() as conn:
                await store.insert_events(conn, events)
        except sqlalchemy.exc.DBAPIError as error:
            if not _is_refusal(error):
                raise
            if len(events) == 1:
                self._set_aside(events[0], error)
                return
            for event in events:
                await self._insert([event])

    def _set_aside(self, event: UsageEvent, error: Exception) -> None:
        """Keep an event that no database takes where an operator finds it, so that the others go on."""
        path = self._directory / "refused.jsonl"
        with path.open("ab") as file:
            file.write(msgspec.json.encode(msgspec.structs.asdict(event)) + b"\n")
        self._metrics.events_set_aside.inc()
        _log.error("usage_event_refused", call_id=event.call_id, file=str(path), reason=f"{error!r:.300}")

    async def _recover_forever(self) -> None:
        while True:
            try:
                found = await recover_orphans(self._directory, self._insert, batch=self._settings.commit_batch)
                if found.owners:
                    _log.info("usage_recovered", journals=found.owners, closed=found.closed, died=found.died)
                for damage in found.damaged:
                    _log.error("journal_damaged", what=damage)
            except Exception as error:  # noqa: BLE001  The worker loop: the journals stay for the next attempt.
                _log.warning("usage_recovery_failed", reason=f"{error!r:.300}")
            self._looked.set()
            await asyncio.sleep(RECOVER_INTERVAL_S)

    async def _sync_forever(self) -> None:
        while True:
            await self._unsynced.wait()
            self._unsynced.clear()
            self._write_journal()
            try:
                await asyncio.to_thread(self._journal.sync)
            except OSError as error:
                _log.error("journal_not_synced", reason=repr(error))
            if self._settings.fsync == "interval":
                await asyncio.sleep(FSYNC_INTERVAL_S)

    def _say_failing(self, error: Exception) -> None:
        self._metrics.journal_failures.inc()
        if self._failing_since_s is None:
            self._failing_since_s = self._clock.monotonic_s()
        _log.warning(
            "usage_not_committed",
            pending=self.pending,
            journal_bytes=self._journal.size_bytes,
            failing_s=round(self._clock.monotonic_s() - self._failing_since_s, 1),
            reason=f"{error!r:.300}",
        )

    def _say_working(self) -> None:
        if self._failing_since_s is not None:
            failing_s = round(self._clock.monotonic_s() - self._failing_since_s, 1)
            _log.info("usage_committed_again", after_s=failing_s)
            self._failing_since_s = None


def _fit(event: UsageEvent) -> None:
    """Bring what only a broken upstream reports, numbers and codes beyond any column, down to what fits."""
    if event.error_code is not None and len(event.error_code) > _MAX_CODE:
        event.error_code = event.error_code[:_MAX_CODE]
    if (event.input_tokens | event.output_tokens | event.cached_tokens | event.images) > _MAX_COUNT:
        for name in ("input_tokens", "output_tokens", "cached_tokens", "images"):
            setattr(event, name, min(getattr(event, name), _MAX_COUNT))
        event.cost_nanos = min(event.cost_nanos, _MAX_COST_NANOS)


def _is_refusal(error: sqlalchemy.exc.DBAPIError) -> bool:
    """Whether the database refused a value (SQLSTATE classes 22 and 23), which trying again does not mend."""
    state = getattr(error.orig, "sqlstate", None) or ""
    return isinstance(error, sqlalchemy.exc.DataError | sqlalchemy.exc.IntegrityError) or state[:2] in ("22", "23")
