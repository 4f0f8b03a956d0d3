"""Bringing home what dead processes left: each journal whose lock is free is committed and removed.

A close record is committed as it is; the call id is the primary key, so offering it twice changes nothing. A call
that began and never ended becomes an event with status 500 and `process_died`, no tokens and no cost: nobody can
tell how much of its answer arrived, and a customer is not charged for what can't be shown.
"""

from __future__ import annotations

import asyncio
import os
import struct
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from modelport.metering.framing import Damage, Record, scan
from modelport.metering.journal import CLOSE, COMMITTED, OPEN, close_record, committed_record, decode_event, try_lock
from modelport.metering.model import UsageEvent

Commit = Callable[[list[UsageEvent]], Awaitable[None]]


@dataclass(slots=True)
class Recovered:
    """What was found in the journals of processes that died."""

    owners: int = 0
    closed: int = 0
    died: int = 0
    damaged: list[str] = field(default_factory=list)


async def recover_orphans(directory: Path, commit: Commit, *, batch: int) -> Recovered:
    """Commit and remove the journals in `directory` whose process is gone.

    Raises what `commit` raises; the journals it had not finished are still there then, for the next attempt.
    Concurrency: any number of processes may do this at once; each journal is one's own while its lock is held.
    """
    found = Recovered()
    for owner in await asyncio.to_thread(_owners, directory):
        lock = directory / f"{owner}.lock"
        fd = try_lock(lock)
        if fd < 0:
            continue
        try:
            await _recover(directory, owner, commit=commit, batch=batch, found=found)
            lock.unlink(missing_ok=True)
        finally:
            os.close(fd)
    return found


def batches(events: list[UsageEvent], most: int) -> Iterator[list[UsageEvent]]:
    """`events` in pieces of at most `most`."""
    return (events[start : start + most] for start in range(0, len(events), most))


def _owners(directory: Path) -> list[str]:
    if not directory.is_dir():
        return []
    names = [path.name for path in directory.iterdir()]
    locks = {name.removesuffix(".lock") for name in names if name.endswith(".lock")}
    # A segment without a lock file is one whose lock somebody removed by hand.
    return sorted(locks | {name.rpartition("-")[0] for name in names if name.endswith(".journal")})


async def _recover(directory: Path, owner: str, *, commit: Commit, batch: int, found: Recovered) -> None:
    segments = await asyncio.to_thread(_segments, directory, owner)
    if not segments:
        return
    found.owners += 1
    committed = await asyncio.to_thread(_committed, segments)
    died: dict[str, UsageEvent] = {}
    for path in segments:
        events, damages = await asyncio.to_thread(_read, path, committed, died)
        for some in batches(events, batch):
            await commit(some)
        found.closed += len(events)
        found.damaged += [_describe(path, damage) for damage in damages]
    for some in batches(list(died.values()), batch):
        await commit(some)
    found.died += len(died)
    await asyncio.to_thread(_remove, segments, found.damaged)


def _segments(directory: Path, owner: str) -> list[Path]:
    return sorted(directory.glob(f"{owner}-*.journal"))


def _records(path: Path) -> Iterator[Record | Damage]:
    return scan(path.read_bytes())


def _committed(segments: list[Path]) -> int:
    """The highest close that is known to be in the database."""
    highest = 0
    for path in segments:
        for found in _records(path):
            if isinstance(found, Record) and found.payload[:1] == COMMITTED:
                highest = max(highest, committed_record(found.payload))
    return highest


def _read(path: Path, committed: int, died: dict[str, UsageEvent]) -> tuple[list[UsageEvent], list[Damage]]:
    """One segment's closes that may be missing, and its damage; `died` gains calls that began and loses the ended."""
    events: list[UsageEvent] = []
    damages: list[Damage] = []
    modified_us = path.stat().st_mtime_ns // 1_000
    for found in _records(path):
        if isinstance(found, Damage):
            damages.append(found)
            continue
        kind = found.payload[:1]
        try:
            if kind == OPEN:
                event = decode_event(found.payload[1:])
                event.latency_us = max(modified_us - event.started_us, 0)
                died[event.call_id] = event
            elif kind == CLOSE:
                number, event = close_record(found.payload)
                died.pop(event.call_id, None)
                if number > committed:
                    events.append(event)
        except (msgspec.MsgspecError, struct.error):
            # The checksum holds but the content does not fit: another version of the platform wrote it.
            damages.append(Damage(found.start, found.end, torn=False))
    return events, damages


def _describe(path: Path, damage: Damage) -> str:
    kind = "torn end" if damage.torn else "damaged"
    return f"{path.name}: {kind}, bytes {damage.start} to {damage.end}"


def _remove(segments: list[Path], damaged: list[str]) -> None:
    """Delete what was read; a segment with damage that is more than a torn end is kept aside as `….damaged`."""
    aside = {line.partition(":")[0] for line in damaged if ": damaged," in line}
    for path in segments:
        if path.name in aside:
            path.rename(path.with_suffix(".damaged"))
        else:
            path.unlink(missing_ok=True)
