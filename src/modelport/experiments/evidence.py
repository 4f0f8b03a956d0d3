"""What results say, and how surely. Pure.

Calls of one unit (a key, say) resemble each other, so means are compared by unit: what varies is the ratio of two sums
over units (delta method), and a thousand calls of one key are one observation. The comparison may be looked at as often
as one likes: under equal variants the chance that it ever says otherwise is about `alpha` at most.

Source: Johari, Koomen, Pekelis, Walsh, "Always Valid Inference: Continuous Monitoring of A/B Tests" (Operations
Research 70, 2022), the mixture sequential probability ratio test with a normal mixture; Deng, Knoblich, Lu, "Applying
the Delta Method in Metric Analytics" (KDD 2018); Wilson, "Probable Inference" (1927).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

# The effect that the mixture expects, in standard deviations of a unit: the test is quickest for about this.
_EFFECT = 0.1
# Below this many units a mean is not yet normal enough for the test's promise.
MIN_UNITS = 100
_Z95 = NormalDist().inv_cdf(0.975)


@dataclass(frozen=True, slots=True)
class Sums:
    """Over units: how many, their observations n and totals x, and the sums of squares and products."""

    units: int = 0
    n: float = 0.0
    x: float = 0.0
    xx: float = 0.0
    xn: float = 0.0
    nn: float = 0.0

    @property
    def mean(self) -> float | None:
        return self.x / self.n if self.n else None

    @property
    def variance(self) -> float:
        """Of the mean."""
        if self.units < 2 or not self.n:
            return math.inf
        mean = self.x / self.n
        around = max(self.xx - 2 * mean * self.xn + mean * mean * self.nn, 0.0)
        return around / (self.n * self.n) * self.units / (self.units - 1)


@dataclass(frozen=True, slots=True)
class Interval:
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Comparison:
    """`difference` is candidate less control, `interval` holds it at every look at once with probability 1 - alpha;
    `p_value` is valid at any time."""

    difference: float
    interval: Interval
    p_value: float


def wilson(successes: float, n: float) -> Interval | None:
    """The 95 % interval of a rate."""
    if not n:
        return None
    z2 = _Z95 * _Z95
    center = (successes + z2 / 2) / (n + z2)
    half = _Z95 / (n + z2) * math.sqrt(max(successes * (n - successes) / n, 0.0) + z2 / 4)
    # At the ends rounding would leave a trace.
    return Interval(max(center - half, 0.0) if successes else 0.0, min(center + half, 1.0) if successes < n else 1.0)


def mean_interval(sums: Sums) -> Interval | None:
    """The 95 % interval of a mean at a single look."""
    if sums.mean is None or not math.isfinite(sums.variance):
        return None
    half = _Z95 * math.sqrt(sums.variance)
    return Interval(sums.mean - half, sums.mean + half)


def compare(control: Sums, candidate: Sums, *, alpha: float, bounded: bool = False) -> Comparison | None:
    """None while there are too few units. `bounded`: what is counted lies between 0 and 1, and
    varies as much as that allows; so that none seen is not none at all."""
    if min(control.units, candidate.units) < MIN_UNITS or control.mean is None or candidate.mean is None:
        return None
    variance = control.variance + candidate.variance
    if bounded:
        pooled = (control.x + candidate.x + 1) / (control.n + candidate.n + 2)
        variance = max(variance, pooled * (1 - pooled) * (1 / control.n + 1 / candidate.n))
    difference = candidate.mean - control.mean
    if variance <= 0:
        return Comparison(difference, Interval(difference, difference), 1.0)
    room = _EFFECT * _EFFECT / (1 / control.units + 1 / candidate.units)
    ratio = -0.5 * math.log1p(room) + difference * difference / variance / 2 * room / (1 + room)
    half = math.sqrt(variance * (1 + room) / room * (math.log1p(room) - 2 * math.log(alpha)))
    return Comparison(difference, Interval(difference - half, difference + half), min(1.0, math.exp(-ratio)))


def winner(sums: Sequence[Sums], *, alpha: float, lower_is_better: bool, bounded: bool) -> int | None:
    """The variant that is surely better than every other one, the risk shared among all pairs."""
    share = alpha / max(len(sums) * (len(sums) - 1) / 2, 1)

    def beats(one: Sums, other: Sums) -> bool:
        found = compare(other, one, alpha=share, bounded=bounded)
        return found is not None and found.p_value <= share and (found.difference < 0) == lower_is_better

    for place, one in enumerate(sums):
        if len(sums) > 1 and all(beats(one, other) for other in sums if other is not one):
            return place
    return None


def mismatch_p_value(units: Sequence[int], weights: Sequence[int]) -> float:
    """How likely units are split as unevenly as this if the weights held (Pearson's chi-squared); small: something
    loses calls of one variant, and the results can't be trusted."""
    pairs = [(seen, weight) for seen, weight in zip(units, weights, strict=True) if weight]
    total, whole = sum(seen for seen, _ in pairs), sum(weight for _, weight in pairs)
    if not total or len(pairs) < 2:
        return 1.0
    squared = sum((seen - total * weight / whole) ** 2 / (total * weight / whole) for seen, weight in pairs)
    return _chi_squared_above(squared, len(pairs) - 1)


def _chi_squared_above(value: float, freedom: int) -> float:
    """Source: Abramowitz and Stegun 6.5.22, the recurrence of the incomplete gamma function."""
    half = value / 2
    above, shape = (math.erfc(math.sqrt(half)), 0.5) if freedom % 2 else (math.exp(-half), 1.0)
    while shape < freedom / 2:
        if half > 0:
            above += math.exp(shape * math.log(half) - half - math.lgamma(shape + 1))
        shape += 1
    return min(above, 1.0)
