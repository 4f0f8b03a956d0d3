"""The stretches that latencies are counted in: one ladder for every histogram of calls."""

from __future__ import annotations

# From a tabular prediction's millisecond to a long answer's minutes. What lies above the last counts as one more.
BOUNDS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.2, 0.35, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)
BOUNDS_US = tuple(round(bound * 1_000_000) for bound in BOUNDS_S)
