"""The nearest question is found by either arithmetic, and what is remembered is bounded."""

from __future__ import annotations

import math
from array import array

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelport.replay.cache.semantic import SemanticIndex, best_dots, plain_dots, unit_vector

_vectors = st.lists(st.lists(st.floats(-1, 1, width=32), min_size=4, max_size=4), min_size=1, max_size=8)


def test_the_nearest_of_a_group_is_found_with_its_cosine() -> None:
    index = SemanticIndex(max_entries=10)
    index.add("g", [1, 0, 0], "east")
    index.add("g", [0, 2, 0], "north")
    index.add("other", [1, 1, 0], "between")
    key, cosine = index.nearest("g", [1, 3, 0]) or ("", 0)
    assert key == "north"
    assert cosine == pytest.approx(3 / math.sqrt(10), abs=1e-6)
    assert index.nearest("nobody", [1, 0, 0]) is None


def test_the_oldest_give_way_and_the_forgotten_are_gone() -> None:
    index = SemanticIndex(max_entries=3)
    for number in range(5):
        index.add(f"g{number % 2}", [1, number, 0], f"k{number}")
    assert len(index) == 3
    assert (index.nearest("g0", [1, 0, 0]) or ("",))[0] == "k2"
    index.forget("g0", "k2")
    index.forget("g0", "k2")
    assert (index.nearest("g0", [1, 0, 0]) or ("",))[0] == "k4"
    index.forget("g0", "k4")
    assert index.nearest("g0", [1, 0, 0]) is None


def test_vectors_without_direction_or_of_another_width_match_nothing() -> None:
    index = SemanticIndex(max_entries=3)
    index.add("g", [0, 0], "nowhere")
    index.add("g", [1, 0], "k")
    assert index.nearest("g", [0, 0]) is None
    assert index.nearest("g", [1, 0, 0]) is None
    index.add("g", [0, 1, 0], "wider")
    assert index.nearest("g", [0, 1, 0]) == ("wider", 1.0)


@given(vectors=_vectors)
def test_both_arithmetics_agree(vectors: list[list[float]]) -> None:
    units = [unit for vector in vectors if (unit := unit_vector(vector)) is not None]
    if units:
        held = bytearray(b"".join(unit.tobytes() for unit in units))
        asked: array[float] = units[0]
        assert list(plain_dots(held, asked)) == pytest.approx(list(best_dots()(held, asked)), abs=1e-5)
