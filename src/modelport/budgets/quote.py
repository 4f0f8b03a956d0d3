"""The most that a call can cost, and how long an answer an amount of money can pay for. Pure; never rounds down."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from modelport.state.protocol import MAX_AMOUNT

# A rate is in parts of a nano-dollar: millionths, since token prices are per million, of hundredths of a percent,
# since discounts are.
PARTS = 1_000_000 * 10_000


class Rate(NamedTuple):
    """What one model that may answer would cost at most: whatever the answer, and for each token of it, in PARTS."""

    fixed: int
    per_token: int


@dataclass(frozen=True, slots=True)
class Quote:
    """`rates`: of every model that may answer, so that a fallback never costs more than was reserved.

    `output_tokens` bounds each of `choices` answers; None where an answer has no tokens to bound.
    """

    rates: tuple[Rate, ...]
    output_tokens: int | None = None
    choices: int = 1

    def nanos(self, output_tokens: int | None) -> int:
        """The most that the call costs when each of its answers is bounded by `output_tokens`."""
        tokens = (output_tokens or 0) * self.choices
        worst = max((rate.fixed + tokens * rate.per_token for rate in self.rates), default=0)
        return min(-(-worst // PARTS), MAX_AMOUNT)

    @property
    def least_nanos(self) -> int:
        """The most that the shortest answer costs: what there must be for a call to make sense at all."""
        return self.nanos(None if self.output_tokens is None else 1)

    def affordable_tokens(self, nanos: int) -> int:
        """The bound of each answer that `nanos` pays for, whichever model answers; below 1 when it pays for none."""
        most = self.output_tokens or 0
        for rate in self.rates:
            left = nanos * PARTS - rate.fixed
            if left < 0:
                return 0
            if rate.per_token:
                most = min(most, left // (rate.per_token * self.choices))
        return most
