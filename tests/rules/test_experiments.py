"""Who gets which variant, and when a difference is sure."""

from __future__ import annotations

import random
from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from modelport.experiments.assignment import choose
from modelport.experiments.evidence import Sums, compare, mismatch_p_value, wilson, winner
from modelport.experiments.model import Variant
from tests.campaign import rounds

UNITS = [f"key_{number}" for number in range(10_000)]


def variants(**weights: int) -> list[Variant]:
    return [Variant(name, "iris", None, weight) for name, weight in weights.items()]


def test_shares_are_those_of_the_weights() -> None:
    """Of 10,000 units each variant gets its share, and a variant of weight 0 gets none."""
    counts = Counter(choose("exp_1", unit, variants(a=70, b=30, c=0)).name for unit in UNITS)
    assert abs(counts["a"] - 7_000) < 250
    assert counts["c"] == 0
    assert mismatch_p_value([counts["a"], counts["b"], 0], [70, 30, 0]) > 0.001


@given(st.text(max_size=40), st.integers(1, 100), st.integers(1, 100), st.integers(1, 100))
def test_a_grown_share_takes_and_never_moves_others(unit: str, a: int, b: int, more: int) -> None:
    """A variant that grows only gains units: nobody moves between the variants that did not."""
    before = choose("exp_1", unit, variants(a=a, b=b, c=5)).name
    after = choose("exp_1", unit, variants(a=a + more, b=b, c=5)).name
    assert after in (before, "a")


def test_experiments_draw_apart() -> None:
    """Who gets the first variant here tells nothing about there."""
    both = sum(
        choose("exp_1", unit, variants(a=1, b=1)).name == choose("exp_2", unit, variants(a=1, b=1)).name
        for unit in UNITS
    )
    assert abs(both - 5_000) < 250


class Seen:
    """A variant's sums as they grow, one observation for each unit."""

    def __init__(self) -> None:
        self.units, self.x, self.xx = 0, 0.0, 0.0

    def add(self, value: float) -> None:
        self.units += 1
        self.x += value
        self.xx += value * value

    @property
    def sums(self) -> Sums:
        return Sums(self.units, self.units, self.x, self.xx, self.x, self.units)


def ever_decided(draw_a: object, draw_b: object, *, bounded: bool, most: int = 2_000) -> bool:
    """Whether somebody who looks after every 20 units is ever told of a winner."""
    a, b = Seen(), Seen()
    for number in range(1, most + 1):
        a.add(draw_a())  # type: ignore[operator]
        b.add(draw_b())  # type: ignore[operator]
        if number % 20 == 0 and winner([a.sums, b.sums], alpha=0.05, lower_is_better=True, bounded=bounded) is not None:
            return True
    return False


def test_equal_variants_are_seldom_told_apart_however_often_one_looks() -> None:
    """A/A with 100 looks: wrong in at most 5 % of the experiments, for rare errors and for skewed latencies."""
    dice, runs = random.Random(5), rounds(short=150, full=2_000)
    rare = lambda: float(dice.random() < 0.02)  # noqa: E731
    slow = lambda: dice.lognormvariate(3.0, 1.0)  # noqa: E731
    for draw, bounded in ((rare, True), (slow, False)):
        wrong = sum(ever_decided(draw, draw, bounded=bounded) for _ in range(runs))
        # Three standard deviations of the count above its bound.
        assert wrong <= 0.05 * runs + 3 * (0.05 * 0.95 * runs) ** 0.5


def test_a_clear_difference_is_found() -> None:
    """Errors of 2 % against 10 %: told before 2,000 units of each in nine of ten experiments."""
    dice, runs = random.Random(6), 40
    found = sum(
        ever_decided(lambda: float(dice.random() < 0.02), lambda: float(dice.random() < 0.1), bounded=True)
        for _ in range(runs)
    )
    assert found >= 0.9 * runs


def test_a_thousand_calls_of_one_key_are_one_observation() -> None:
    """Few units decide nothing, however many calls they made."""
    few = Sums(units=5, n=50_000, x=25_000, xx=1.3e8, xn=2.6e8, nn=5.1e8)
    none = Sums(units=5, n=50_000, x=0, xx=0, xn=0, nn=5.1e8)
    assert compare(few, none, alpha=0.05, bounded=True) is None


def test_a_split_that_loses_calls_is_noticed() -> None:
    assert mismatch_p_value([5_000, 4_000], [50, 50]) < 1e-6
    assert mismatch_p_value([0, 0], [50, 50]) == 1.0
    # Pearson's table: 5.991 with 2 degrees of freedom is the 5 % point.
    assert abs(mismatch_p_value([100, 100, 153], [1, 1, 1]) - 0.00056) < 0.0005


def test_intervals_of_rates_stay_within_bounds() -> None:
    assert wilson(0, 0) is None
    none, all_ = wilson(0, 10), wilson(10, 10)
    assert none is not None
    assert all_ is not None
    assert (none.low, round(none.high, 3)) == (0.0, 0.278)
    assert (round(all_.low, 3), all_.high) == (0.722, 1.0)
