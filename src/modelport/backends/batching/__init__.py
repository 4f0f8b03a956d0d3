"""Computes calls together, whatever the engine: a fair queue, what a batch costs, and who is let in.

Everything but `batcher` is pure: no clock, no thread, no event loop.
"""

from __future__ import annotations

from modelport.backends.batching.batcher import Batcher
from modelport.backends.batching.work import Packing, Prepared, Runner

__all__ = ["Batcher", "Packing", "Prepared", "Runner"]
