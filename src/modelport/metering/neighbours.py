"""What other living processes on this host closed a moment ago: read from their journals, to be in a report at once.

They commit it themselves as well; the call id makes it one row.
"""

from __future__ import annotations

import os
from pathlib import Path

import msgspec

from modelport.metering.framing import Record, scan
from modelport.metering.journal import CLOSE, COMMITTED, close_record, committed_record
from modelport.metering.model import UsageEvent


class Neighbours:
    """Remembers how far each file was read. Concurrency: one reader at a time."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._read_bytes: dict[Path, int] = {}

    def read_new(self, *, own: str) -> list[UsageEvent]:
        """Calls that processes other than `own` closed since the last time, without those they say are committed.

        Blocks; raises OSError.
        """
        paths = [path for path in sorted(self._directory.glob("*.journal")) if _owner(path) != own]
        self._read_bytes = {path: self._read_bytes.get(path, 0) for path in paths}
        closes: dict[str, dict[int, UsageEvent]] = {}
        for path in paths:
            self._read(path, closes.setdefault(_owner(path), {}))
        return [event for events in closes.values() for event in events.values()]

    def _read(self, path: Path, closes: dict[int, UsageEvent]) -> None:
        start = self._read_bytes[path]
        for found in scan(_tail(path, start)):
            if not isinstance(found, Record):
                continue
            self._read_bytes[path] = start + found.end
            kind = found.payload[:1]
            if kind == CLOSE:
                try:
                    number, event = close_record(found.payload)
                except msgspec.MsgspecError:
                    # Another version of the platform runs beside this one; it commits its events itself.
                    continue
                closes[number] = event
            elif kind == COMMITTED:
                last = committed_record(found.payload)
                for number in [number for number in closes if number <= last]:
                    del closes[number]


def _owner(path: Path) -> str:
    return path.name.rpartition("-")[0]


def _tail(path: Path, start: int) -> bytes:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        # Its owner dropped it just now: all of it is committed.
        return b""
    try:
        return os.pread(fd, max(os.fstat(fd).st_size - start, 0), start)
    finally:
        os.close(fd)
