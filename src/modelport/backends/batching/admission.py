"""Whether a call is let into the queue: only if it is going to be answered while that is still of use. Pure."""

from __future__ import annotations

from dataclasses import dataclass

# Predictions are off by about a fifth; what is promised with this much in reserve is kept.
MARGIN = 0.8
# A call that takes long by itself may wait as long again, three times: the objective is made for the usual ones.
_STRETCH = 4.0
_LONGEST_RETRY_S = 30.0
_SHORTEST_RETRY_S = 0.05


@dataclass(frozen=True, slots=True)
class Outlook:
    """What is expected of a call that comes now: how long it waits, and how long it is computed."""

    wait_s: float
    own_s: float


def retry_after_s(outlook: Outlook, *, slo_s: float, left_s: float) -> float | None:
    """None to let the call in; else when enough of what waits will have been computed.

    `left_s` is the time until the call's own deadline. A call that waits for nobody is always let in, so that a model
    that was slow once is asked again.
    """
    if outlook.wait_s <= 0:
        return None
    bound_s = MARGIN * min(max(slo_s, _STRETCH * outlook.own_s), max(left_s, 0.0))
    late_s = outlook.wait_s + outlook.own_s - bound_s
    if late_s <= 0:
        return None
    return min(max(late_s, _SHORTEST_RETRY_S), _LONGEST_RETRY_S)
