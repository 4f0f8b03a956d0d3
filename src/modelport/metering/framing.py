"""How records lie in a journal file: a mark, length, checksum, then the record. Pure.

    0      4        8        12
    | mark | length | CRC-32 | record …        little-endian; length and CRC-32 are the record's

The mark lets a reader find the next whole record behind a damaged stretch. A file is allocated ahead of its writer,
so zeros behind the last record are its end.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass

# A record is an event of well under a kilobyte and its metadata; what is longer is damage.
MAX_RECORD_BYTES = 64_000
MARK = b"\xf5MPJ"
_HEADER = struct.Struct("<4sII")
HEADER_BYTES = _HEADER.size


@dataclass(frozen=True, slots=True)
class Record:
    """A whole record and where its frame begins and ends in the data that was scanned."""

    payload: bytes
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Damage:
    """A stretch without a whole record. `torn`: the last record of a writer that died within its write."""

    start: int
    end: int
    torn: bool


def frame(payload: bytes) -> bytes:
    """`payload` as it is appended to a journal."""
    return _HEADER.pack(MARK, len(payload), zlib.crc32(payload)) + payload


def scan(data: bytes, offset: int = 0) -> Iterator[Record | Damage]:
    """Every whole record from `offset` on, in order, and each damaged stretch between or behind them."""
    while offset < len(data):
        record = _record_at(data, offset)
        if record is None:
            found = _next_record(data, offset + 1)
            if found is None:
                yield from _tail(data, offset)
                return
            yield Damage(offset, found.start, torn=False)
            record = found
        yield record
        offset = record.end


def _record_at(data: bytes, offset: int) -> Record | None:
    begin = offset + HEADER_BYTES
    if begin > len(data):
        return None
    mark, length, checksum = _HEADER.unpack_from(data, offset)
    end = begin + length
    # No record is empty: a mark before zeros would read as one, since the checksum of nothing is zero.
    if mark != MARK or not 0 < length <= MAX_RECORD_BYTES or end > len(data):
        return None
    payload = data[begin:end]
    return Record(payload, offset, end) if zlib.crc32(payload) == checksum else None


def _next_record(data: bytes, offset: int) -> Record | None:
    while (offset := data.find(MARK, offset)) >= 0:
        record = _record_at(data, offset)
        if record is not None:
            return record
        offset += 1
    return None


def _tail(data: bytes, offset: int) -> Iterator[Damage]:
    """What is left when no whole record follows: nothing but zeros, a torn record, or damage."""
    left = data[offset:].rstrip(b"\0")
    if not left:
        return
    yield Damage(offset, offset + len(left), torn=_is_torn(left))


def _is_torn(left: bytes) -> bool:
    if len(left) < HEADER_BYTES:
        return MARK.startswith(left[: len(MARK)]) or left.startswith(MARK)
    mark, length, _ = _HEADER.unpack_from(left)
    return bool(mark == MARK and length <= MAX_RECORD_BYTES and len(left) < HEADER_BYTES + length)
