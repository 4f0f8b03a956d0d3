"""Weighted choice, pure: the same draws give the same order."""

from __future__ import annotations

from collections.abc import Callable, Sequence

# A number in [0, 1), such as `random.random` gives.
Draw = Callable[[], float]


def weighted_order(weights: Sequence[int], draw: Draw) -> list[int]:
    """Indexes in the order in which to try them: each next one is drawn from those left, in proportion to its weight.

    So the first choice follows the weights exactly, and when one target is down, the others share its part in
    proportion to theirs. Those of weight 0 come last, in their own order: they stand by.
    """
    if len(weights) == 2 and min(weights) > 0:
        # The same for the most common case.
        return [0, 1] if draw() * (weights[0] + weights[1]) < weights[0] else [1, 0]
    left = [index for index, weight in enumerate(weights) if weight > 0]
    order: list[int] = []
    while len(left) > 1:
        chosen = _pick([weights[index] for index in left], draw())
        order.append(left.pop(chosen))
    return order + left + [index for index, weight in enumerate(weights) if weight <= 0]


def _pick(weights: Sequence[int], drawn: float) -> int:
    point = drawn * sum(weights)
    for index, weight in enumerate(weights):
        point -= weight
        if point < 0:
            return index
    # Rounding alone can lead here.
    return len(weights) - 1
