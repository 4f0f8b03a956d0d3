"""Whatever happens to a journal's bytes, every record that is still whole is read, and only those."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from modelport.metering.framing import Damage, Record, frame, scan

_payloads = st.lists(st.binary(min_size=1, max_size=60), max_size=12)


def records(data: bytes) -> list[bytes]:
    return [found.payload for found in scan(data) if isinstance(found, Record)]


def damages(data: bytes) -> list[Damage]:
    return [found for found in scan(data) if isinstance(found, Damage)]


@given(_payloads, st.integers(0, 100))
def test_what_was_framed_is_read_whatever_zeros_follow(payloads: list[bytes], zeros: int) -> None:
    data = b"".join(map(frame, payloads)) + bytes(zeros)
    assert records(data) == payloads
    assert damages(data) == []


@given(_payloads, st.data(), st.booleans())
def test_any_cut_leaves_exactly_the_complete_records(payloads: list[bytes], data: st.DataObject, zeros: bool) -> None:
    whole = b"".join(map(frame, payloads))
    cut = data.draw(st.integers(0, len(whole)))
    ends = [len(b"".join(map(frame, payloads[: n + 1]))) for n in range(len(payloads))]
    complete = [payload for payload, end in zip(payloads, ends, strict=True) if end <= cut]
    left = whole[:cut] + (bytes(200) if zeros else b"")
    # A record that was cut within its own last zeros is whole again, since allocated space is zeros.
    found = records(left)
    assert found[: len(complete)] == complete
    assert found == complete or (zeros and found == payloads[: len(complete) + 1])
    assert all(damage.torn for damage in damages(left))


@given(st.lists(st.binary(min_size=1, max_size=60), min_size=3, max_size=12), st.data())
def test_damage_in_the_middle_costs_only_the_records_it_touches(payloads: list[bytes], data: st.DataObject) -> None:
    index = data.draw(st.integers(0, len(payloads) - 2))
    start = len(b"".join(map(frame, payloads[:index])))
    broken = bytearray(b"".join(map(frame, payloads)))
    at = start + data.draw(st.integers(0, len(frame(payloads[index])) - 1))
    broken[at] ^= data.draw(st.integers(1, 255))
    assert records(bytes(broken)) == payloads[:index] + payloads[index + 1 :]
    assert [damage.torn for damage in damages(bytes(broken))] == [False]


@given(st.binary(max_size=300))
def test_noise_holds_no_records_and_breaks_nothing(noise: bytes) -> None:
    assert records(noise) == []


@given(_payloads, st.binary(min_size=1, max_size=40))
def test_a_record_may_hold_a_frame_of_its_own(payloads: list[bytes], inner: bytes) -> None:
    nested = [frame(inner), *payloads]
    assert records(b"".join(map(frame, nested))) == nested
