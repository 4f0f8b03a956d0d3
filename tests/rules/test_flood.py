"""What a turn of the event loop takes on: as much as it can answer in its time, and never nothing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from modelport.api.flood import LEAST, Flood


class Loop:
    """An event loop by hand: `turn` runs what was to be called soon."""

    def __init__(self) -> None:
        self.soon: list[Callable[[], Any]] = []

    def call_soon(self, callback: Callable[[], Any]) -> None:
        self.soon.append(callback)

    def turn(self) -> None:
        soon, self.soon = self.soon, []
        for callback in soon:
            callback()


class Rig:
    """A worker whose requests take `cost_s` each."""

    def __init__(self, longest_wait_s: float, cost_s: float) -> None:
        self.loop, self.cpu_s, self.cost_s = Loop(), 0.0, cost_s
        self.flood = Flood(longest_wait_s, self.loop, now=lambda: self.cpu_s)  # type: ignore[arg-type]

    def turn(self, coming: int) -> int:
        """How many of so many that come at once are taken on; they are answered then."""
        taken = sum(self.flood.takes() for _ in range(coming))
        self.loop.turn()
        self.cpu_s += taken * self.cost_s
        return taken

    def learn(self, coming: int) -> None:
        """What a turn took is known in the one after it, and heeded in the next."""
        self.turn(coming)
        self.turn(coming)


def test_what_can_be_answered_in_time_is_taken_on() -> None:
    rig = Rig(longest_wait_s=0.2, cost_s=0.001)
    assert [rig.turn(90) for _ in range(20)] == [90] * 20
    assert rig.flood.turned_away == 0


def test_a_flood_is_cut_to_what_a_turn_can_answer() -> None:
    rig = Rig(longest_wait_s=0.2, cost_s=0.001)
    rig.learn(100)
    assert all(95 <= rig.turn(1000) <= 105 for _ in range(20))


def test_a_few_are_always_taken_on_however_long_they_take() -> None:
    rig = Rig(longest_wait_s=0.2, cost_s=10.0)
    rig.learn(50)
    assert all(rig.turn(50) >= LEAST for _ in range(5))


def test_bursts_with_nothing_to_do_between_them_are_no_flood() -> None:
    """Waiting takes no processor time, so a quiet server that is asked for fifty things at once takes them on."""
    rig = Rig(longest_wait_s=0.2, cost_s=0.0001)
    for _ in range(50):
        assert rig.turn(50) == 50


def test_it_learns_that_calls_have_become_cheaper() -> None:
    rig = Rig(longest_wait_s=0.2, cost_s=0.01)
    rig.learn(50)
    assert rig.turn(1000) == 10
    rig.cost_s = 0.001
    assert [rig.turn(1000) for _ in range(40)][-1] >= 90
