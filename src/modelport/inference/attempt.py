"""One attempt at answering a call, while it is under way, and its line in the receipt once it has ended."""

from __future__ import annotations

import math

from modelport.calls import Call
from modelport.errors import CallCancelled, ModelportError
from modelport.metering.model import Attempt
from modelport.routing.model import Leg

# What the receipt says of an attempt that was given up because another one began first.
SLOWER = "slower"
# What fits into the column for a call's own code.
_MAX_CODE = 80


class Try:
    """An attempt under way: whom it asks (`leg`), and the number that the router gave it."""

    __slots__ = ("began_s", "ended", "leg", "number", "started_s")

    def __init__(self, leg: Leg, number: int, started_s: float) -> None:
        self.leg = leg
        self.number = number
        self.started_s = started_s
        # When its output began.
        self.began_s: float | None = None
        self.ended = False

    def record(self, call: Call, error: ModelportError | None, code: str | None, now_s: float) -> Attempt:
        """What it was: answered, failed with `error`, or given up for the reason that `code` names."""
        leg, began_s = self.leg, self.began_s
        target = leg.candidate.target
        return Attempt(
            model=leg.route.model,
            version=leg.route.version,
            backend=target.backend.kind,
            upstream=target.upstream,
            upstream_model=target.upstream_model,
            status=CallCancelled.status if code else 200 if error is None else error.status,
            error_code=code or (None if error is None else error.code[:_MAX_CODE]),
            started_us=call.started_us + _us(self.started_s - call.started_s),
            latency_us=_us(now_s - self.started_s),
            first_token_us=None if began_s is None else _us(began_s - self.started_s),
            why=None if leg.why is None else leg.why.value,
        )


def _us(seconds: float) -> int:
    return math.floor(max(seconds, 0.0) * 1_000_000)
