"""The ledger: every call's usage event, first in the journal, then in the database, there exactly once.

`open` and `close` are what a call pays: one write each to the page cache. A background task commits what was closed
in groups. When the database is away the journal grows, bounded by the disk, and is committed when it is back.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from dataclasses import dataclass
from pathlib import Path

import structlog

from modelport.calls import Call
from modelport.db.engine import Database
from modelport.errors import BadRequest, Unavailable
from modelport.metering import store
from modelport.metering.journal import Journal, JournalFull, Position, encode_event
from modelport.metering.framing import MAX_RECORD_BYTES
from modelport.metering.model import UsageEvent
from modelport.metering.recovery import Recovered, recover_orphans
from modelport.observe.metrics import Metrics
from modelport.settings import MeteringSettings

DIED = "process_died"
# Closed events held in memory; later ones are read back from the journal. About 10 MB.
MAX_QUEUED = 10_000
# How often the journals of other processes are looked at, to bring home those of the dead.
RECOVER_INTERVAL_S = 5.0
FSYNC_INTERVAL_S = 1.0
# Pauses after failed commits double up to this.
MAX_PAUSE_S = 5.0
# How long a stopping process tries to commit; what remains is committed at the next start.
CLOSE_TIMEOUT_S = 5.0
# An event's own text; metadata beyond leaves no room for it in a journal record.
MAX_METADATA_BYTES = MAX_RECORD_BYTES // 2

_log = structlog.get_logger(__name__)


class Ledger:
    """One per process. Concurrency: `open` and `close` on the event loop's thread."""

    def __init__(self, db: Database, *, directory: Path, settings: MeteringSettings, metrics: Metrics) -> None:
        self._db = db
        self._directory = directory
        self._settings = settings
        self._metrics = metrics
        self._journal = Journal(directory, segment_bytes=settings.segment_bytes)
        # (number of the close record, event); 0 where the journal could not be written.
        self._queue: deque[tuple[int, UsageEvent]] = deque()
        self._batch: list[tuple[int, UsageEvent]] = []
        self._behind: Position | None = None
        self._committing = asyncio.Lock()
        self._wake = asyncio.Event()
        self._synced = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        self._pause_s = 0.0

    async def start(self) -> None:
        """Open the journal and begin to commit; journals of dead processes are brought home in the background.

        Raises: OSError when the directory can't be written.
        """
        self._journal.start()
        self._tasks = [asyncio.create_task(self._commit_forever()), asyncio.create_task(self._recover_forever())]
        if self._settings.fsync != "never":
            self._tasks.append(asyncio.create_task(self._sync_forever()))

    @property
    def pending(self) -> int:
        """Closed events that the database does not have yet."""
        return self._journal.closes - self._journal.committed

    def open(self, call: Call, *, model: str, version: str, backend: str) -> None:
        """Record that a call begins. What is recorded is what counts if the process dies in it: status 500, no cost.

        Raises: Unavailable when the disk is full, BadRequest when the metadata is too long; nothing is recorded then.
        """
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
        )
        if call.metadata and len(encode_event(event)) > MAX_METADATA_BYTES:
            raise BadRequest(f"The metadata is longer than {MAX_METADATA_BYTES:,} bytes.", param="metadata")
        try:
            self._journal.append_open(event)
        except JournalFull as error:
            raise Unavailable(
                "The call can't be recorded for billing at the moment, so it was not begun.",
                retry_after_s=5.0,
                internal=f"the journal can't be written: {error}",
            ) from error

    def close(self, event: UsageEvent) -> None:
        """Record a call's end. Never raises: what can't be written is kept in memory, and said in the log."""
        try:
            position = self._journal.append_close(event)
        except OSError as error:
            self._keep_unwritten(event, error)
            return
        if self._behind is None:
            if len(self._queue) < MAX_QUEUED:
                self._queue.append((self._journal.closes, event))
            else:
                self._behind = position
        if len(self._queue) >= self._settings.commit_batch:
            self._wake.set()

    async def flush(self) -> None:
        """Return when everything closed in this process before is in the database.

        Raises: Unavailable when the database can't be written.
        """
        ...

    async def close_down(self) -> None: ...
