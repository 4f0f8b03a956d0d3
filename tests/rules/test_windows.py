"""The limits' arithmetic: no stretch of a window's length ever holds more than the limit, and no less than it could."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modelport.state.protocol import MAX_AMOUNT, SUB_WINDOWS, Bucket, Taken
from modelport.state.windows import Holds, Meter, Window, changes, check, sub_window_us, take_all

_START_US = 1_767_225_600_000_000


def _take(bucket: Bucket, window: Window, now_us: int) -> Taken:
    window.advance(now_us)
    return take_all("c", [bucket], [window], now_us=now_us, fence=0)


@dataclass
class _Entry:
    """What one take that passed counts for, in the reference model."""

    at_us: int
    amount: int


_steps = st.lists(
    st.one_of(
        st.tuples(st.just("take"), st.integers(0, 12)),
        st.tuples(st.just("settle"), st.integers(0, 100), st.integers(0, 15)),
        st.tuples(st.just("wait"), st.one_of(st.integers(0, 3_000_000), st.integers(0, 90_000_000))),
    ),
    max_size=80,
)


@settings(max_examples=300, deadline=None)
@given(steps=_steps, limit=st.integers(1, 30), window_s=st.sampled_from([1, 7, 60, 61]))
def test_no_stretch_of_the_window_exceeds_the_limit_and_room_comes_back_in_time(
    steps: list[Any], limit: int, window_s: int
) -> None:
    window, now_us, window_us = Window(window_s, _START_US), _START_US, window_s * 1_000_000
    entries: list[tuple[_Entry, Taken]] = []
    for step in steps:
        if step[0] == "wait":
            now_us += step[1]
        elif step[0] == "settle" and entries:
            entry, taken = entries[step[1] % len(entries)]
            for _, mark, change in changes(taken, [step[2]]):
                if window.correct(mark, change):
                    entry.amount += change
        elif step[0] == "take":
            bucket = Bucket("k", "rpm", limit, window_s, step[1])
            taken = _take(bucket, window, now_us)
            exact = sum(entry.amount for entry, _ in entries if entry.at_us > now_us - window_us)
            late_us = sub_window_us(window_s)
            lenient = sum(entry.amount for entry, _ in entries if entry.at_us > now_us - window_us - late_us)
            if taken.allowed:
                assert exact + step[1] <= limit
                entries.append((_Entry(now_us, step[1]), taken))
            else:
                assert lenient + step[1] > limit, "refused although everything within a sub-window more had room"


@settings(max_examples=200, deadline=None)
@given(
    takes=st.lists(st.tuples(st.integers(0, 70_000_000), st.integers(1, 9)), max_size=40),
    limit=st.integers(9, 20),
    window_s=st.sampled_from([1, 13, 60]),
)
def test_a_refused_take_passes_after_retry_after_and_not_a_microsecond_sooner(
    takes: list[tuple[int, int]], limit: int, window_s: int
) -> None:
    window, now_us = Window(window_s, _START_US), _START_US
    for wait_us, amount in takes:
        now_us += wait_us
        bucket = Bucket("k", "rpm", limit, window_s, amount)
        taken = _take(bucket, window, now_us)
        if not taken.allowed:
            assert taken.retry_after_s is not None
            retry_us = now_us + round(taken.retry_after_s * 1_000_000)
            assert not _take(bucket, window, retry_us - 1).allowed
            now_us = retry_us
            taken = _take(bucket, window, now_us)
            assert taken.allowed
        reset_us = now_us + round(taken.levels[0].reset_s * 1_000_000)
        probe = Window(window_s, 0)
        probe.newest, probe.total, probe.amounts = window.newest, window.total, window.amounts[:]
        probe.advance(reset_us - 1)
        assert probe.total > 0
        probe.advance(reset_us)
        assert probe.total == 0


def test_two_bursts_around_an_edge_share_one_limit() -> None:
    window = Window(60, _START_US)
    bucket = Bucket("k", "rpm", 100, 60, 100)
    assert _take(bucket, window, _START_US + 59_999_999).allowed
    assert not _take(bucket, window, _START_US + 60_000_000).allowed
    assert not _take(bucket, window, _START_US + 119_999_999).allowed
    assert _take(bucket, window, _START_US + 120_000_000).allowed


def test_a_clock_that_is_set_back_forgets_nothing_and_keeps_nothing_forever() -> None:
    window = Window(60, _START_US)
    bucket = Bucket("k", "rpm", 10, 60, 10)
    assert _take(bucket, window, _START_US).allowed
    for back_s in (1, 59, 86_400):
        now_us = _START_US - back_s * 1_000_000
        refused = _take(bucket, window, now_us)
        assert not refused.allowed
        assert refused.retry_after_s is not None
        assert refused.retry_after_s <= 2 * 61
    now_us = _START_US - 86_400_000_000 + 61_000_000
    assert _take(bucket, window, now_us).allowed


@pytest.mark.parametrize("window_s", [1, 7, 59, 60, 61, 3_600, 86_400])
def test_sixty_sub_windows_cover_the_window(window_s: int) -> None:
    length_us = sub_window_us(window_s)
    assert window_s * 1_000_000 <= SUB_WINDOWS * length_us < window_s * 1_000_000 + SUB_WINDOWS


def test_all_buckets_are_taken_or_none_and_the_first_without_room_is_named() -> None:
    meters: list[Meter] = [Window(60, _START_US), Window(60, _START_US), Holds(3)]
    buckets = [Bucket("a", "rpm", 5, 60, 1), Bucket("b", "tpm", 5, 60, 6), Bucket("c", "calls", 3, 0, 1)]
    taken = take_all("c", buckets, meters, now_us=_START_US, fence=7)
    assert (taken.refused, taken.retry_after_s, taken.fence) == (1, None, 7)
    assert [meter.total for meter in meters] == [0, 0, 3]


def test_wrong_amounts_and_twice_named_buckets_are_refused_before_anything_is_taken() -> None:
    for amount in (-1, MAX_AMOUNT + 1):
        with pytest.raises(ValueError):
            check([Bucket("a", "rpm", 5, 60, amount)])
    with pytest.raises(ValueError):
        check([Bucket("a", "rpm", 5, 60, 1), Bucket("a", "rpm", 9, 60, 1)])
    check([Bucket("a", "rpm", 5, 60, 1), Bucket("a", "rph", 9, 3_600, 1), Bucket("a", "calls", 9, 0, 1)])
