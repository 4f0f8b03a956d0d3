"""What a state remembers of purses beside the numbers themselves. No I/O."""

from __future__ import annotations

from collections import OrderedDict

from modelport.state.protocol import PURSE_TTL_S
from modelport.state.windows import Purse


def hold_key(key: str) -> str:
    """The name under which the holds of a purse are kept, among those of hold buckets."""
    return "purse:" + key


class Purses:
    """Every purse of a memory, the least recently used first, so that those of periods long past are found."""

    __slots__ = ("_purses",)

    def __init__(self) -> None:
        self._purses: OrderedDict[str, tuple[Purse, int]] = OrderedDict()

    def reach(self, key: str, now_us: int) -> Purse:
        """The purse of `key`; a new one takes the place of up to two that nobody used for long."""
        found = self._purses.get(key)
        if found is None:
            self._forget(now_us)
        purse = Purse(None, 0) if found is None else found[0]
        self._purses[key] = (purse, now_us)
        self._purses.move_to_end(key)
        return purse

    def _forget(self, now_us: int) -> None:
        for _ in range(2):
            oldest = next(iter(self._purses.items()), None)
            if oldest is None or oldest[1][0].held or oldest[1][1] + PURSE_TTL_S * 1_000_000 > now_us:
                return
            del self._purses[oldest[0]]


class Unrecorded:
    """What this process charged lately, while it is not certain that the durable record has it.

    A state that may have lost some of it is told to hold it instead: for as long as two calls of `State.recorded`
    take, within which the record has it and the purse was raised to the record.
    """

    __slots__ = ("_charged", "_doubted")

    def __init__(self) -> None:
        # Two generations each, the younger first.
        self._charged: tuple[dict[str, int], dict[str, int]] = ({}, {})
        self._doubted: tuple[dict[str, int], dict[str, int]] = ({}, {})

    def charge(self, key: str, amount: int) -> None:
        """The state was told of this charge."""
        _add(self._charged[0], key, amount)

    def doubt(self, key: str, amount: int) -> None:
        """Whether the state counts this charge is not known: it is held from now on, until `rotate` says otherwise."""
        for charged in self._charged:
            part = min(charged.get(key, 0), amount)
            if part:
                _add(charged, key, -part)
                _add(self._doubted[0], key, part)
                amount -= part
        if amount:
            _add(self._doubted[0], key, amount)

    def charged(self) -> dict[str, int]:
        """What a state that lost its memory has lost, by purse."""
        total = dict(self._charged[0])
        for key, amount in self._charged[1].items():
            _add(total, key, amount)
        return total

    def rotate(self) -> dict[str, int]:
        """A while has passed: what needs to be held no longer, by purse."""
        released = self._doubted[1]
        self._charged = ({}, self._charged[0])
        self._doubted = ({}, self._doubted[0])
        return released


def _add(amounts: dict[str, int], key: str, amount: int) -> None:
    total = amounts.get(key, 0) + amount
    if total:
        amounts[key] = total
    else:
        amounts.pop(key, None)
