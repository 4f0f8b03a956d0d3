"""The arithmetic of metering, pure: cost, price lines, percentiles. Integers throughout."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from modelport.calls import Usage
from modelport.kit.money import divide, per_million
from modelport.metering.model import Price

_MILLION = 1_000_000
_WHOLE_BASIS_POINTS = 10_000
# Durations below the first number (microseconds) are counted in stretches as wide as the second. 175 a decade: few
# enough to count each group of a report apart. From a quarter of an hour on, the last width goes on.
_DECADE = ((200, 2), (500, 4), (1_000, 10))
RESOLUTION_STEPS: tuple[tuple[int, int], ...] = (
    (100, 1),
    *((below * 10**power, step * 10**power) for power in range(7) for below, step in _DECADE),
)


@dataclass(frozen=True, slots=True)
class PriceLine:
    """One line of a receipt. `quantity` counts `unit`s (seconds: microseconds); `unit_nanos` is the price of `per` of
    them; `amount_nanos` may be a nano-dollar off their product, so that the lines of a call add up to its cost."""

    item: str
    quantity: int
    unit_nanos: int
    per: int
    amount_nanos: int


def cost_nanos(price: Price, usage: Usage, *, latency_us: int, discount_basis_points: int) -> int:
    """What a call costs in nano-dollars, after the discount, rounded half to even, once.

    Cached tokens are part of the input tokens. A discount is hundredths of a percent.
    """
    total = _charged(price, usage, latency_us=latency_us)
    if not discount_basis_points:
        return per_million(total)
    return divide(total * (_WHOLE_BASIS_POINTS - discount_basis_points), _MILLION * _WHOLE_BASIS_POINTS)


def _charged(price: Price, usage: Usage, *, latency_us: int) -> int:
    """Millionths of a nano-dollar, before any discount."""
    cached = usage.cached_tokens if price.cached_nanos_per_mtok is not None else 0
    total = (
        usage.input_tokens - cached
    ) * price.input_nanos_per_mtok + usage.output_tokens * price.output_nanos_per_mtok
    if cached and price.cached_nanos_per_mtok is not None:
        total += cached * price.cached_nanos_per_mtok
    if price.nanos_per_request or price.nanos_per_image or price.nanos_per_second:
        total += (price.nanos_per_request + usage.images * price.nanos_per_image) * _MILLION
        # Microseconds are millionths of the unit, as tokens are of a million: the same scale.
        total += latency_us * price.nanos_per_second
    return total


def price_lines(price: Price, usage: Usage, *, latency_us: int, discount_basis_points: int) -> list[PriceLine]:
    """The receipt's lines; their amounts add up to `cost_nanos` exactly. Items with neither quantity nor price are
    left out.

    Each amount is the difference of two rounded running totals, so no line is off by more than a nano-dollar.
    """
    cached = usage.cached_tokens if price.cached_nanos_per_mtok is not None else 0
    items = [
        ("input_tokens", usage.input_tokens - cached, price.input_nanos_per_mtok, _MILLION),
        ("cached_tokens", cached, price.cached_nanos_per_mtok or 0, _MILLION),
        ("output_tokens", usage.output_tokens, price.output_nanos_per_mtok, _MILLION),
        ("request", 1 if price.nanos_per_request else 0, price.nanos_per_request, 1),
        ("images", usage.images, price.nanos_per_image, 1),
        ("microseconds", latency_us if price.nanos_per_second else 0, price.nanos_per_second, _MILLION),
    ]
    lines, running, rounded = [], 0, 0
    for item, quantity, unit_nanos, per in items:
        if not quantity:
            continue
        running += quantity * unit_nanos * (_MILLION // per)
        lines.append(PriceLine(item, quantity, unit_nanos, per, per_million(running) - rounded))
        rounded = per_million(running)
    if discount_basis_points:
        cost = cost_nanos(price, usage, latency_us=latency_us, discount_basis_points=discount_basis_points)
        lines.append(PriceLine("discount", discount_basis_points, 0, _WHOLE_BASIS_POINTS, cost - rounded))
    return lines


def resolution(value_us: int) -> int:
    """The middle of the stretch, 2 % wide or less, in which `value_us` is counted: at most 1 % from the truth.

    The same is written in SQL in `queries`; both read RESOLUTION_STEPS.
    """
    widths = (step for below, step in RESOLUTION_STEPS if value_us < below)
    step_us = next(widths, RESOLUTION_STEPS[-1][1])
    return value_us // step_us * step_us + step_us // 2


def quantiles(counts: Iterable[tuple[int, int]], total: int, wanted: Sequence[float]) -> list[int]:
    """The value at each of `wanted` (ascending, in 0–1) among `total` values given as (value, how often), ascending.

    The nearest rank: the smallest value that at least that share of values do not exceed; 0 for no values.
    """
    ranks = [max(-(-total * round(share * 10_000) // 10_000), 1) for share in wanted]
    found: list[int] = []
    seen, value = 0, 0
    for value, count in counts:
        seen += count
        while len(found) < len(ranks) and seen >= ranks[len(found)]:
            found.append(value)
    return found + [value] * (len(ranks) - len(found))
