"""A circuit breaker, pure: outcomes and instants in, a state out. It has no clock and asks nobody.

    CLOSED ──too many bad calls in the window──▶ OPEN ──open_s later, one call at a time──▶ HALF_OPEN
       ▲                                          ▲                                           │   │
       └──────────── `probes` good ones in a row ─┼───────────────────────────────────────────┘   │
                                                  └───────────────── a bad one ───────────────────┘

Outcomes of calls that began before the last change say nothing about the state since, so each is recorded with the
`generation` that was current when its call began, and an old one is dropped.

Source: M. Nygard, Release It! (circuit breaker); the rates over a sliding window are resilience4j's.
"""

from __future__ import annotations

import enum
import math
from dataclasses import dataclass

# A window is counted in so many slots; calls leave it one slot at a time.
SLOTS = 10
# After another process took the probe, this one asks for it again no sooner: a state round trip is not for every call.
PROBE_AGAIN_S = 1.0


class BreakerState(enum.IntEnum):
    """Larger is worse, so that the largest of several processes' values is the one to look at."""

    CLOSED = 0
    HALF_OPEN = 1
    OPEN = 2


class Gate(enum.Enum):
    """What a call finds: it passes, it passes if it becomes the probe, or it is turned away."""

    FREE = "free"
    PROBE = "probe"
    SHUT = "shut"


class Outcome(enum.Enum):
    """What a call says about its target. NEUTRAL: nothing, as when its client hung up or its own queue was full."""

    GOOD = "good"
    BAD = "bad"
    NEUTRAL = "neutral"


# Reading a member off an enum's class takes as long as three calls of a function.
CLOSED, GOOD, _NEUTRAL = BreakerState.CLOSED, Outcome.GOOD, Outcome.NEUTRAL


@dataclass(frozen=True, slots=True)
class BreakerRules:
    """When a breaker opens and how it closes. `slow_call_s` None: no call is slow."""

    window_s: float = 30.0
    min_calls: int = 10
    error_rate: float = 0.5
    slow_call_s: float | None = None
    slow_rate: float = 0.5
    open_s: float = 10.0
    probes: int = 2


class Breaker:
    """One target's breaker in this process. Instants are seconds of one monotonic clock, and never go back."""

    __slots__ = (
        "_bad",
        "_calls",
        "_good_probes",
        "_newest",
        "_newest_counts",
        "_newest_until_s",
        "_probe_from_s",
        "_probing",
        "_slot_s",
        "_slots",
        "_slow",
        "_slow_s",
        "generation",
        "reopens_s",
        "rules",
        "state",
    )

    def __init__(self, rules: BreakerRules) -> None:
        self.rules = rules
        self.state = BreakerState.CLOSED
        self.generation = 0
        # When an open breaker lets a probe through.
        self.reopens_s = 0.0
        self._slot_s = rules.window_s / SLOTS
        self._slow_s = math.inf if rules.slow_call_s is None else rules.slow_call_s
        self._good_probes = 0
        self._probing = False
        self._probe_from_s = 0.0
        self._forget()

    @property
    def calls(self) -> int:
        """Calls in the window, as of the last one recorded."""
        return self._calls

    @property
    def bad(self) -> int:
        return self._bad

    @property
    def slow(self) -> int:
        return self._slow

    def gate(self, now_s: float) -> Gate:
        """What a call that would begin now finds. Changes nothing."""
        if self.state is BreakerState.CLOSED:
            return Gate.FREE
        if self._probing or now_s < self.reopens_s or now_s < self._probe_from_s:
            return Gate.SHUT
        return Gate.PROBE

    def wait_s(self, now_s: float) -> float:
        """In how many seconds it is worth to ask again, for whoever was turned away."""
        return max(self.reopens_s - now_s, self._probe_from_s - now_s, PROBE_AGAIN_S)

    def record(self, outcome: Outcome, now_s: float, *, generation: int, latency_s: float = 0.0) -> bool:
        """Note how a call ended; true when that changed the state. Calls of an earlier generation change nothing."""
        if generation != self.generation:
            return False
        if self.state is not CLOSED:
            return self._record_probe(outcome, now_s)
        if outcome is _NEUTRAL:
            return False
        counts = self._newest_counts if now_s < self._newest_until_s else self._advance(now_s)
        counts[0] += 1
        self._calls += 1
        slow = latency_s > self._slow_s
        if outcome is GOOD and not slow:
            return False
        if outcome is Outcome.BAD:
            counts[1] += 1
            self._bad += 1
        if slow:
            counts[2] += 1
            self._slow += 1
        if not self._is_too_bad():
            return False
        self.open(now_s + self.rules.open_s)
        return True

    def begin_probe(self) -> None:
        """The call that found `Gate.PROBE` goes ahead, alone, until its outcome is recorded."""
        if self.state is BreakerState.OPEN:
            self.state = BreakerState.HALF_OPEN
            self.generation += 1
            self._good_probes = 0
        self._probing = True
        self._probe_from_s = 0.0

    def leave_probe(self, now_s: float) -> None:
        """Somebody else probes: turn calls away until it is worth to ask again."""
        self._probe_from_s = now_s + PROBE_AGAIN_S

    def open(self, until_s: float) -> None:
        """Turn calls away until `until_s`, whatever the counts say: another process has seen enough."""
        self.state = BreakerState.OPEN
        self.reopens_s = until_s
        self._change()

    def close(self) -> None:
        """Let every call through and begin to count afresh."""
        self.state = BreakerState.CLOSED
        self._change()

    def _record_probe(self, outcome: Outcome, now_s: float) -> bool:
        self._probing = False
        if outcome is Outcome.BAD:
            self.open(now_s + self.rules.open_s)
            return True
        if outcome is Outcome.GOOD:
            self._good_probes += 1
            if self._good_probes >= self.rules.probes:
                self.close()
                return True
        return False

    def _is_too_bad(self) -> bool:
        rules, calls = self.rules, self._calls
        if calls < rules.min_calls:
            return False
        return (self._bad > 0 and self._bad >= rules.error_rate * calls) or (
            self._slow > 0 and self._slow >= rules.slow_rate * calls
        )

    def _change(self) -> None:
        self.generation += 1
        self._probing = False
        self._probe_from_s = 0.0
        self._forget()

    def _forget(self) -> None:
        self._slots = [[0, 0, 0] for _ in range(SLOTS)]
        self._newest = -1
        self._newest_counts = self._slots[0]
        self._newest_until_s = -math.inf
        self._calls = self._bad = self._slow = 0

    def _advance(self, now_s: float) -> list[int]:
        """The counts of the slot that holds `now_s`: calls, bad ones, slow ones. What left the window is dropped."""
        newest = int(now_s / self._slot_s)
        if newest > self._newest:
            for number in range(max(self._newest + 1, newest - SLOTS + 1), newest + 1):
                counts = self._slots[number % SLOTS]
                self._calls -= counts[0]
                self._bad -= counts[1]
                self._slow -= counts[2]
                counts[0] = counts[1] = counts[2] = 0
            self._newest = newest
            self._newest_counts = self._slots[newest % SLOTS]
            self._newest_until_s = (newest + 1) * self._slot_s
        return self._newest_counts
