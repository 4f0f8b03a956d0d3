"""Some twenty seconds of load leave memory where it was, and every call in the books."""

from __future__ import annotations

from bench.soak import soak

# A leak of a kilobyte a call would show several times over; caches that still fill do not.
MOST_GROWTH_BYTES = 40_000_000


def test_under_load_memory_stays_and_no_usage_row_is_lost() -> None:
    found = soak(seconds=20, turn_s=2)
    assert (found.wrong, found.errors) == (0, 0)
    assert found.hang_ups > 0
    assert found.metered == found.expected
    assert found.growth_bytes < MOST_GROWTH_BYTES, found.memory
