"""The minutes, hours, days and months of UTC, as microseconds since the epoch. Pure."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Literal

Bucket = Literal["minute", "hour", "day", "month"]

_SECOND_US = 1_000_000
_FIXED_US: dict[str, int] = {"minute": 60_000_000, "hour": 3_600_000_000, "day": 86_400_000_000}


def bucket_start(at_us: int, bucket: Bucket) -> int:
    """The beginning, in UTC, of the minute, hour, day or month that holds `at_us`."""
    if bucket != "month":
        return at_us - at_us % _FIXED_US[bucket]
    moment = datetime.fromtimestamp(at_us // _SECOND_US, UTC)
    return _month_us(moment.year, moment.month)


def bucket_end(start_us: int, bucket: Bucket) -> int:
    """The beginning of the bucket after the one that begins at `start_us`."""
    if bucket != "month":
        return start_us + _FIXED_US[bucket]
    moment = datetime.fromtimestamp(start_us // _SECOND_US, UTC)
    return _month_us(moment.year + moment.month // 12, moment.month % 12 + 1)


def _month_us(year: int, month: int) -> int:
    return int(datetime(year, month, 1, tzinfo=UTC).timestamp()) * _SECOND_US


def fixed_bucket_us(bucket: Bucket) -> int | None:
    """The length of a bucket whose beginnings are multiples of it since the epoch; None for months."""
    return _FIXED_US.get(bucket)
