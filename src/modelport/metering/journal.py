"""The journal: what this process owes the database, in files that outlive it.

One process, one journal: `OWNER.lock`, held with flock while the process lives, and segments `OWNER-NUMBER.journal`.
Records go out in one write to the page cache, which the death of the process does not touch. Space is allocated
ahead and each open call reserves the room of its close record, so a full disk refuses calls before they begin and
never loses one that ran.

Records: `O` + event: a call began; the event is what is charged if nothing more is ever written. `C` + number +
event: it ended; close records are numbered from 1. `M` + number: every close up to it is in the database.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import secrets
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import msgspec

from modelport.metering.framing import MAX_RECORD_BYTES, Record, frame, scan
from modelport.metering.model import UsageEvent

OPEN, CLOSE, COMMITTED = b"O", b"C", b"M"
_NUMBER = struct.Struct("<Q")
# One system call allocates room for some 500 calls.
_ALLOCATE_BYTES = 256 * 1024
# A close record is its open record with larger numbers, an error code, a price id and what its attempts were: at most
# this much longer (16 attempts with names of ordinary length).
_CLOSE_GROWTH_BYTES = 4096
_READ_BYTES = 1 << 20
# The mark of a commit; written only where nothing is reserved.
_COMMITTED_BYTES = 64

encode_event = msgspec.msgpack.Encoder().encode
decode_event = msgspec.msgpack.Decoder(UsageEvent).decode


class JournalFull(Exception):
    """The disk has no room for another call (or can't be written at all)."""


@dataclass(slots=True, eq=False)
class Segment:
    """One file. `open_calls` began here and have not ended; `last_close` is the highest close that concerns it."""

    path: Path
    number: int
    fd: int
    size: int = 0
    allocated: int = 0
    open_calls: int = 0
    last_close: int = 0


@dataclass(frozen=True, slots=True)
class Position:
    segment: int
    offset: int


class Journal:
    """Concurrency: used by one thread. `sync` alone may run in another.

    With `flush_soon`, records wait for `flush`, which whoever is called by it promises to do before anything leaves
    that depends on them; without, each is written at once.
    """

    def __init__(self, directory: Path, *, segment_bytes: int, flush_soon: Callable[[], None] | None = None) -> None:
        self._directory = directory
        self._segment_bytes = segment_bytes
        self._flush_soon = flush_soon
        # What waits to be written at the end of the current segment, and whether that failed the last time.
        self._unwritten: list[bytes] = []
        self._failed = False
        self._segments: list[Segment] = []
        self._opened: dict[str, tuple[Segment, int]] = {}
        self._reserved = 0
        self._lock_fd = -1
        self.owner = ""
        self.closes = 0
        self.committed = 0

    def start(self) -> None:
        """Take a name and a lock of our own and make the first segment. Raises: OSError."""
        self._directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        while self._lock_fd < 0:
            self.owner = f"{os.getpid()}-{secrets.token_hex(4)}"
            self._lock_fd = try_lock(self._directory / f"{self.owner}.lock")
        self._add_segment()

    @property
    def size_bytes(self) -> int:
        """What the journal takes up now."""
        return sum(segment.size for segment in self._segments)

    @property
    def open_calls(self) -> int:
        return len(self._opened)

    def append_open(self, event: UsageEvent) -> None:
        """Record that a call begins, and reserve the room of its end.

        `event` is what is recorded of the call if the process dies in it. Raises: JournalFull, with nothing written.
        """
        data = frame(OPEN + encode_event(event))
        close_bytes = len(data) + _CLOSE_GROWTH_BYTES
        try:
            if self._failed:
                self.flush()
            segment = self._segment_for(len(data) + close_bytes)
            self._write(segment, data)
        except OSError as error:
            raise JournalFull(str(error)) from error
        segment.open_calls += 1
        self._opened[event.call_id] = (segment, close_bytes)
        self._reserved += close_bytes

    def append_close(self, event: UsageEvent) -> Position:
        """Record a call's end in the room that was reserved for it; where the record lies, or will lie.

        Raises: OSError when it can't be written all the same (the close is then not counted).
        """
        segment = self._segments[-1]
        position = Position(segment.number, segment.size)
        data = frame(CLOSE + _NUMBER.pack(self.closes + 1) + encode_event(event))
        opened = self._opened.pop(event.call_id, None)
        if opened is not None:
            opened[0].open_calls -= 1
            self._reserved -= opened[1]
        self._write(segment, data)
        self.closes += 1
        segment.last_close = self.closes
        if opened is not None:
            opened[0].last_close = self.closes
        return position

    def mark_committed(self, number: int) -> None:
        """Every close up to `number` is in the database: say so, and drop the segments that nobody needs now."""
        self.committed = number
        segment = self._segments[-1]
        if segment.size + self._reserved + _COMMITTED_BYTES <= segment.allocated:
            # Without it, a recovery only offers the database what it has already.
            with contextlib.suppress(OSError):
                self._write(segment, frame(COMMITTED + _NUMBER.pack(number)))
        for old in [old for old in self._segments[:-1] if not old.open_calls and old.last_close <= number]:
            self._drop(old)

    def read_closes(self, position: Position, *, most: int) -> tuple[list[tuple[int, UsageEvent]], Position | None]:
        """Up to `most` numbered close records from `position` on, and where the next ones begin; None at the end.

        Raises: OSError while they can't be written.
        """
        self.flush()
        closes: list[tuple[int, UsageEvent]] = []
        for segment in [segment for segment in self._segments if segment.number >= position.segment]:
            offset = position.offset if segment.number == position.segment else 0
            while offset < segment.size:
                if len(closes) >= most:
                    return closes, Position(segment.number, offset)
                offset = _read_some(segment, offset, closes, most=most)
        return closes, None

    def sync(self) -> None:
        """Have the disk itself hold what was written. Blocks; raises OSError."""
        for segment in list(self._segments):
            try:
                os.fsync(segment.fd)
            except OSError as error:
                # A segment that was dropped meanwhile is in the database.
                if error.errno != errno.EBADF:
                    raise

    def close(self) -> None:
        """Let go. What the database has is deleted; what it lacks waits for whoever takes the lock next."""
        with contextlib.suppress(OSError):
            self.flush()
        for segment in self._segments:
            if segment.open_calls or segment.last_close > self.committed:
                os.ftruncate(segment.fd, segment.size)
                os.close(segment.fd)
            else:
                os.close(segment.fd)
                segment.path.unlink(missing_ok=True)
        left = any(segment.path.exists() for segment in self._segments)
        self._segments.clear()
        if not left:
            (self._directory / f"{self.owner}.lock").unlink(missing_ok=True)
        os.close(self._lock_fd)
        self._lock_fd = -1

    def flush(self) -> None:
        """Write what waits. Raises: OSError; then it waits on, and no call begins before it was written."""
        if not self._unwritten:
            return
        segment = self._segments[-1]
        data = self._unwritten[0] if len(self._unwritten) == 1 else b"".join(self._unwritten)
        self._failed = True
        if os.pwrite(segment.fd, data, segment.size - len(data)) != len(data):
            raise OSError("the disk took only a part of a record")
        self._failed = False
        self._unwritten.clear()

    def _write(self, segment: Segment, data: bytes) -> None:
        """Add `data` at the end of the current segment. Where that fails, the end stays where it was, so that the
        next write covers the torn one."""
        if len(data) > MAX_RECORD_BYTES:
            raise OSError(f"a record of {len(data)} bytes is too long for a journal")
        self._unwritten.append(data)
        segment.size += len(data)
        if self._flush_soon is not None:
            if len(self._unwritten) == 1:
                self._flush_soon()
            return
        try:
            self.flush()
        except OSError:
            self._unwritten.pop()
            self._failed = False
            segment.size -= len(data)
            raise

    def _segment_for(self, size_bytes: int) -> Segment:
        """The current segment with room for `size_bytes` beside what is reserved, or a new one."""
        segment = self._segments[-1]
        if segment.size and segment.size + size_bytes > self._segment_bytes:
            segment = self._add_segment(size_bytes)
        elif segment.size + self._reserved + size_bytes > segment.allocated:
            _allocate(segment, segment.size + self._reserved + size_bytes)
        return segment

    def _add_segment(self, size_bytes: int = 0) -> Segment:
        self.flush()
        number = self._segments[-1].number + 1 if self._segments else 1
        path = self._directory / f"{self.owner}-{number:08d}.journal"
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        segment = Segment(path, number, fd)
        try:
            _allocate(segment, self._reserved + size_bytes)
        except OSError:
            os.close(fd)
            path.unlink()
            raise
        self._segments.append(segment)
        return segment

    def _drop(self, segment: Segment) -> None:
        self._segments.remove(segment)
        os.close(segment.fd)
        segment.path.unlink(missing_ok=True)


def try_lock(path: Path) -> int:
    """The descriptor that holds `path`'s lock, or -1 while a living process holds it.

    A lock file is deleted by the process that holds it, so one that is gone once it was locked does not count.
    """
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.fstat(fd).st_nlink:
            return fd
    except BlockingIOError:
        pass
    os.close(fd)
    return -1


def close_record(payload: bytes) -> tuple[int, UsageEvent]:
    """A close record's number and event."""
    return _NUMBER.unpack_from(payload, 1)[0], decode_event(payload[1 + _NUMBER.size :])


def committed_record(payload: bytes) -> int:
    """The number of a committed record."""
    number: int = _NUMBER.unpack_from(payload, 1)[0]
    return number


def _allocate(segment: Segment, needed_bytes: int) -> None:
    length = needed_bytes + _ALLOCATE_BYTES
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(segment.fd, 0, length)
    segment.allocated = length


def _read_some(segment: Segment, offset: int, closes: list[tuple[int, UsageEvent]], *, most: int) -> int:
    """Add the closes of one stretch of the file; the offset behind the last record that was looked at."""
    data = os.pread(segment.fd, min(_READ_BYTES, segment.size - offset), offset)
    end = 0
    for found in scan(data):
        if len(closes) >= most:
            break
        if not isinstance(found, Record):
            continue
        end = found.end
        if found.payload[:1] == CLOSE:
            closes.append(close_record(found.payload))
    # A stretch of a live journal without one whole record can't be: it would hold a record longer than the longest.
    return offset + (end or len(data))
