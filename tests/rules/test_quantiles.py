"""Percentiles from counts are those of the values, within 1 %; periods begin and end where UTC says."""

from __future__ import annotations

import math
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelport.kit.calendar import Bucket, bucket_end, bucket_start
from modelport.metering.rules import quantiles, resolution

_values = st.lists(st.integers(0, 1_000), min_size=1, max_size=200)


@given(_values)
def test_a_percentile_is_the_value_of_the_nearest_rank(values: list[int]) -> None:
    counts = [(value, values.count(value)) for value in sorted(set(values))]
    ordered = sorted(values)
    wanted = [ordered[max(math.ceil(percent * len(values) / 100), 1) - 1] for percent in (50, 95, 99)]
    assert quantiles(counts, len(values), (0.5, 0.95, 0.99)) == wanted


@given(st.integers(0, 3_600_000_000))
def test_a_duration_is_counted_within_one_percent(value_us: int) -> None:
    assert abs(resolution(value_us) - value_us) <= value_us / 100


@given(st.lists(st.integers(0, 10**12), min_size=2, max_size=2))
def test_counting_keeps_the_order(pair: list[int]) -> None:
    low, high = sorted(pair)
    assert resolution(low) <= resolution(high)


@given(
    st.datetimes(min_value=datetime(1970, 1, 1), max_value=datetime(2200, 1, 1)),
    st.sampled_from(["minute", "hour", "day", "month"]),
)
def test_a_bucket_holds_its_instant_and_ends_where_the_next_begins(moment: datetime, bucket: Bucket) -> None:
    at_us = int(moment.replace(tzinfo=UTC).timestamp()) * 1_000_000
    start_us = bucket_start(at_us, bucket)
    end_us = bucket_end(start_us, bucket)
    assert start_us <= at_us < end_us
    assert bucket_start(end_us, bucket) == end_us
    assert bucket_start(end_us - 1, bucket) == start_us


@pytest.mark.parametrize(("year", "days"), [(2024, 29), (2025, 28), (2100, 28)])
def test_february_has_the_days_of_its_year(year: int, days: int) -> None:
    start_us = int(datetime(year, 2, 1, tzinfo=UTC).timestamp()) * 1_000_000
    assert bucket_end(start_us, "month") - start_us == days * 86_400_000_000
