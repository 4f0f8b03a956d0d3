"""Questions that were asked, as vectors, and which of them is nearest to a new one.

Numpy does the arithmetic where it is installed (it comes with the local models); without it, plain Python does, a
hundred times slower, on the same numbers.
"""

from __future__ import annotations

import math
from array import array
from collections import deque
from collections.abc import Callable, Sequence
from operator import mul

Dots = Callable[[bytearray, "array[float]"], "Sequence[float]"]
_FLOAT_BYTES = 4


class SemanticIndex:
    """One model's questions in this process. Those with the same `group` differ in their text alone.

    `max_entries` bounds all groups together; the oldest questions give way.
    """

    def __init__(self, *, max_entries: int) -> None:
        self._max_entries = max_entries
        self._groups: dict[str, _Group] = {}
        self._order: deque[tuple[str, str]] = deque()
        self._dots = best_dots()

    def __len__(self) -> int:
        return sum(len(group.keys) for group in self._groups.values())

    def add(self, group: str, vector: Sequence[float], key: str) -> None:
        """Remember that the answer stored as `key` answers this question."""
        unit = unit_vector(vector)
        if unit is None:
            return
        self._groups.setdefault(group, _Group()).add(unit, key)
        self._order.append((group, key))
        # Those that were forgotten one by one are still in the order.
        while len(self._order) > self._max_entries:
            self.forget(*self._order.popleft())

    def nearest(self, group: str, vector: Sequence[float]) -> tuple[str, float] | None:
        """The key of the question nearest to this one, and the cosine of their angle."""
        found, unit = self._groups.get(group), unit_vector(vector)
        if found is None or unit is None or len(unit) != found.width:
            return None
        cosines = self._dots(found.vectors, unit)
        place = max(range(len(found.keys)), key=cosines.__getitem__)
        return found.keys[place], float(cosines[place])

    def forget(self, group: str, key: str) -> None:
        """The answer is stored no more."""
        found = self._groups.get(group)
        if found is not None and found.remove(key):
            del self._groups[group]


class _Group:
    """Unit vectors one behind the other, and the key of each one's answer."""

    __slots__ = ("keys", "vectors", "width")

    def __init__(self) -> None:
        self.keys: list[str] = []
        self.vectors = bytearray()
        self.width = 0

    def add(self, unit: array[float], key: str) -> None:
        if self.width != len(unit):
            # Another embedder than before: its numbers can't be compared with the earlier ones.
            self.keys, self.vectors, self.width = [], bytearray(), len(unit)
        self.keys.append(key)
        self.vectors += unit.tobytes()

    def remove(self, key: str) -> bool:
        """Remove the oldest question with this answer; true when none is left."""
        if key in self.keys:
            place, size_bytes = self.keys.index(key), self.width * _FLOAT_BYTES
            del self.keys[place]
            del self.vectors[place * size_bytes : (place + 1) * size_bytes]
        return not self.keys


def unit_vector(vector: Sequence[float]) -> array[float] | None:
    """`vector` in single precision and of length 1; None for one without a direction."""
    length = math.hypot(*vector)
    if not length or not math.isfinite(length):
        return None
    return array("f", [number / length for number in vector])


def plain_dots(vectors: bytearray, unit: array[float]) -> Sequence[float]:
    """The dot product of each vector with `unit`."""
    with memoryview(vectors).cast("f") as numbers:
        width = len(unit)
        return [sum(map(mul, numbers[at : at + width], unit)) for at in range(0, len(numbers), width)]


def best_dots() -> Dots:
    """`plain_dots`, or the same by numpy where there is one."""
    try:
        import numpy as np
    except ImportError:
        return plain_dots

    def dots(vectors: bytearray, unit: array[float]) -> Sequence[float]:
        matrix = np.frombuffer(vectors, dtype=np.float32).reshape(-1, len(unit))
        found: list[float] = (matrix @ np.frombuffer(unit, dtype=np.float32)).tolist()
        return found

    return dots
