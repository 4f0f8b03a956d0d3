"""Ground that everything counts on: time, ids and money."""

from __future__ import annotations

from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelport.kit.clock import ManualClock, SystemClock, parse_rfc3339, rfc3339
from modelport.kit.ids import IdSource
from modelport.kit.money import NANOS_PER_USD, format_usd, parse_usd, per_million

_NANOS = st.integers(min_value=-(10**18), max_value=10**18)


@given(_NANOS)
def test_money_survives_being_written_and_read(nanos: int) -> None:
    assert parse_usd(format_usd(nanos)) == nanos


@given(_NANOS)
def test_money_is_written_exactly(nanos: int) -> None:
    assert Decimal(format_usd(nanos)) * NANOS_PER_USD == nanos
    assert "e" not in format_usd(nanos).lower()


@pytest.mark.parametrize("text", ["", "abc", "nan", "inf", "0.0000000001", "1e400", "1e10"])
def test_what_is_no_exact_amount_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r".+"):
        parse_usd(text)


@given(st.integers(min_value=0, max_value=10**24))
def test_a_price_is_rounded_once_half_to_even(total: int) -> None:
    assert per_million(total) == int((Decimal(total) / 1_000_000).quantize(Decimal(1), rounding="ROUND_HALF_EVEN"))


@given(st.integers(min_value=0, max_value=253_402_300_799_999_999))
def test_times_survive_being_written_and_read(us: int) -> None:
    assert parse_rfc3339(rfc3339(us)) == us


def test_a_time_with_an_offset_is_the_same_instant() -> None:
    assert parse_rfc3339("2026-11-21T08:00:00+02:00") == parse_rfc3339("2026-11-21T06:00:00Z")


def test_ids_sort_by_time_and_never_repeat() -> None:
    clock = ManualClock()
    ids = IdSource(clock)
    seen = []
    for _ in range(2000):
        seen.append(ids.new("req_"))
        clock.advance(0.001)
    assert seen == sorted(seen)
    assert len(set(seen)) == len(seen)
    assert all(len(id_) == len("req_") + 32 for id_ in seen)


def test_the_systems_clock_counts_microseconds_of_this_age() -> None:
    assert rfc3339(SystemClock().now_us()) > "2026"


def test_a_manual_clock_moves_only_by_hand() -> None:
    clock = ManualClock()
    before = clock.now_us()
    clock.advance(1.5)
    assert clock.now_us() - before == 1_500_000
    assert clock.monotonic_s() == 1.5
