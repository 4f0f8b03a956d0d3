"""Whether a call is let into the queue: only if it is going to be answered while that is still of use. Pure."""

from __future__ import annotations

from collections import OrderedDict
from typing import NamedTuple

# Predictions are off by about a fifth; what is promised with this much in reserve is kept.
MARGIN = 0.8
# A call that takes long by itself may wait as long again, three times: the objective is made for the usual ones.
_STRETCH = 4.0
_LONGEST_RETRY_S = 30.0
_SHORTEST_RETRY_S = 0.05


# Organizations whose waits are remembered.
_REMEMBERED = 1024
_NEWEST = 0.05
_MOST_LONGER = 4.0


class Turn(NamedTuple):
    """A call that was let in: whose it is, when it came, how long it is expected to wait, and when it is of no use."""

    tenant: str
    since_s: float
    expected_s: float
    deadline_s: float


class Outlook(NamedTuple):
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


class Experience:
    """How much longer an organization's calls wait than was expected, because others come later and go first."""

    __slots__ = ("_factors",)

    def __init__(self) -> None:
        self._factors: OrderedDict[str, float] = OrderedDict()

    def factor(self, tenant: str) -> float:
        return self._factors.get(tenant, 1.0)

    def learn(self, tenant: str, *, expected_s: float, waited_s: float) -> None:
        """`expected_s` is what was expected without the factor."""
        if expected_s <= 0:
            return
        seen = min(max(waited_s / expected_s, 1.0), _MOST_LONGER)
        factor = self._factors.pop(tenant, 1.0)
        self._factors[tenant] = factor + _NEWEST * (seen - factor)
        if len(self._factors) > _REMEMBERED:
            self._factors.popitem(last=False)
