"""Trace contexts are continued when they are valid and begun anew when they are not (W3C Trace Context)."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelport.observe.tracing import MAX_TRACESTATE_BYTES, Trace

TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
OWN = "0199d1c2a7f07c3e8f6b5a4d3c2b1a09"
VALID = f"00-{TRACE}-{SPAN}-01"


def test_a_valid_trace_is_continued_with_a_span_of_our_own() -> None:
    trace = Trace.from_headers(VALID.encode(), b"vendor=abc", own=OWN)
    assert (trace.trace_id, trace.parent_id, trace.sampled, trace.tracestate) == (TRACE, SPAN, True, "vendor=abc")
    assert trace.span_id != SPAN
    assert trace.header() == f"00-{TRACE}-{trace.span_id}-01".encode()


def test_a_later_version_is_read_as_far_as_it_is_known() -> None:
    assert Trace.from_headers(f"cc-{TRACE}-{SPAN}-01-what-the-future-holds".encode(), None, own=OWN).trace_id == TRACE


@pytest.mark.parametrize(
    "header",
    [
        "",
        "00",
        f"ff-{TRACE}-{SPAN}-01",
        f"00-{'0' * 32}-{SPAN}-01",
        f"00-{TRACE}-{'0' * 16}-01",
        f"00-{TRACE.upper()}-{SPAN}-01",
        f"00-{TRACE}-{SPAN}-01-more",
        f"00-{TRACE}-{SPAN}-1",
        f"00-{TRACE[1:]}-{SPAN}-01",
        f"cc-{TRACE}-{SPAN}-01.more",
        f"00-{TRACE}-{SPAN}-0g",
    ],
)
def test_an_invalid_trace_begins_a_new_one_and_drops_its_state(header: str) -> None:
    trace = Trace.from_headers(header.encode(), b"vendor=abc", own=OWN)
    assert trace.trace_id != TRACE
    assert (trace.parent_id, trace.tracestate) == (None, None)


@given(st.binary(max_size=80), st.none() | st.binary(max_size=600))
def test_no_header_breaks_anything_and_what_we_send_is_valid(traceparent: bytes, tracestate: bytes | None) -> None:
    sent = Trace.from_headers(traceparent, tracestate, own=OWN)
    again = Trace.from_headers(sent.header(), None, own=OWN)
    assert (again.trace_id, again.parent_id) == (sent.trace_id, sent.span_id)


def test_an_overlong_or_unprintable_state_is_dropped_whole() -> None:
    assert Trace.from_headers(VALID.encode(), b"a" * (MAX_TRACESTATE_BYTES + 1), own=OWN).tracestate is None
    assert Trace.from_headers(VALID.encode(), b"a=b\r\nx: y", own=OWN).tracestate is None


def test_a_trace_that_begins_here_bears_the_request_s_own_id() -> None:
    assert Trace.from_headers(None, None, own=OWN).header() == f"00-{OWN}-{OWN[16:]}-00".encode()
