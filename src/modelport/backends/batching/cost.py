"""What a batch of some cost takes, learnt from those that were computed: `seconds = base + slope × cost`.

A least-squares line over the recent batches, older ones counting less and less. One that took far longer or shorter
than expected counts as no more than three times off, so that a hiccup moves the line little and a lasting change is
learnt within a few batches.
"""

from __future__ import annotations

# What is left of an observation's weight after the next one: about the last 50 count.
_FORGET = 0.98
_MOST_OFF = 3.0
# Observations before the line is trusted with a judgement.
_SURE_AFTER = 4
# Costs that differ by less (squared, relative) tell nothing about the slope.
_LEAST_SPREAD = 1e-3
_NEWEST = 0.2


class CostModel:
    """One model's line. Learning and predicting take about a microsecond each."""

    __slots__ = ("_c", "_cc", "_ct", "_full", "_t", "_weight", "base_s", "observed", "slope_s")

    def __init__(self, full_cost: int) -> None:
        self.base_s = 0.0
        self.slope_s = 0.0
        self.observed = 0
        self._weight = self._c = self._cc = self._t = self._ct = 0.0
        # What a batch costs while others wait: how a backlog is going to be divided.
        self._full = float(full_cost)

    @property
    def sure(self) -> bool:
        return self.observed >= _SURE_AFTER

    def learn(self, cost: int, took_s: float, *, crowded: bool = False) -> None:
        """Note a batch. `crowded`: others were left waiting, so that it was as full as it gets."""
        if self.sure:
            expected = max(self.predict(cost), 1e-9)
            took_s = min(max(took_s, expected / _MOST_OFF), expected * _MOST_OFF)
        self.observed += 1
        # Large batches are off by more seconds than small ones, not by a larger share.
        weight = 1.0 / cost
        self._weight = self._weight * _FORGET + weight
        self._c = self._c * _FORGET + 1.0
        self._cc = self._cc * _FORGET + cost
        self._t = self._t * _FORGET + took_s * weight
        self._ct = self._ct * _FORGET + took_s
        if crowded:
            self._full += _NEWEST * (cost - self._full)
        self._fit()

    def predict(self, cost: float) -> float:
        """Seconds for one batch of this cost; 0 while nothing was computed yet."""
        return self.base_s + self.slope_s * cost

    def predict_backlog(self, cost: float) -> float:
        """Seconds until as much is computed, in batches as full as they were lately."""
        batches = max(cost / max(self._full, 1.0), 1.0 if cost else 0.0)
        return batches * self.base_s + self.slope_s * cost

    def _fit(self) -> None:
        mean_c, mean_t = self._c / self._weight, self._t / self._weight
        spread = self._cc / self._weight - mean_c * mean_c
        if spread <= _LEAST_SPREAD * mean_c * mean_c:
            # All alike: whatever costs more takes more in proportion, which is never too little.
            self.base_s, self.slope_s = 0.0, mean_t / max(mean_c, 1e-9)
            return
        slope = (self._ct / self._weight - mean_c * mean_t) / spread
        # Neither part can be negative: the line goes through the mean all the same.
        self.slope_s = min(max(slope, 0.0), mean_t / max(mean_c, 1e-9))
        self.base_s = mean_t - self.slope_s * mean_c
