"""What this process knows of each target: calls under way, how fast it answers, whether it asked for a rest."""

from __future__ import annotations

from collections import deque

from modelport.routing.breaker import Breaker

# Weight of the newest latency in the moving average: the last ten calls make up nine tenths of it.
_NEWEST = 0.2
# Latencies kept for quantiles, and how many it takes until one means anything.
SAMPLES = 128
MIN_SAMPLES = 20
# A latency that is older than this is no longer believed, so that a target which was slow once is tried again.
STALE_S = 10.0


class Pulse:
    """One target (an upstream and its model), shared by every route that has it.

    A latency is the time to the first piece of output, which is the whole answer where it does not stream.
    """

    __slots__ = (
        "_heard_s",
        "_latency_s",
        "_samples",
        "breaker",
        "model",
        "name",
        "outstanding",
        "rests_until_s",
        "upstream",
    )

    def __init__(self, upstream: str, model: str, breaker: Breaker | None) -> None:
        """`upstream` is empty for a local model, which has no breaker either."""
        self.upstream = upstream
        self.model = model
        self.name = f"{upstream}/{model}" if upstream else model
        self.breaker = breaker
        self.outstanding = 0
        # It answered that it has a limit of its own (429), and when to come back.
        self.rests_until_s = 0.0
        self._latency_s = 0.0
        self._heard_s = -STALE_S
        self._samples: deque[float] = deque(maxlen=SAMPLES)

    def answered(self, latency_s: float, now_s: float) -> None:
        """Note how long an answer took to begin."""
        if now_s - self._heard_s >= STALE_S:
            self._latency_s = latency_s
        else:
            self._latency_s += _NEWEST * (latency_s - self._latency_s)
        self._heard_s = now_s
        self._samples.append(latency_s)

    def latency_s(self, now_s: float) -> float | None:
        """The moving average of its latencies; None where nothing was heard lately."""
        return self._latency_s if now_s - self._heard_s < STALE_S else None

    def quantile_s(self, share: float) -> float | None:
        """The latency that `share` of the last answers did not exceed; None while there are too few."""
        if len(self._samples) < MIN_SAMPLES:
            return None
        ordered = sorted(self._samples)
        return ordered[min(int(share * len(ordered)), len(ordered) - 1)]
