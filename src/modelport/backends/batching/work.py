"""What is computed, and what computes it: how a call becomes rows, rows become results, and results an answer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import msgspec

from modelport.calls import Call, Delta, Usage
from modelport.errors import ModelportError


class Rows(Protocol):
    """What has a length and can be sliced: a list, an array, or the tensors of a call. A slice is a block."""

    def __len__(self) -> int: ...

    def __getitem__(self, rows: slice, /) -> Any: ...


class Prepared(msgspec.Struct, frozen=True, gc=False):
    """A call that is ready to be computed.

    `run` takes blocks of `rows`. `sizes` are what each row costs, in the units of the packing; None is 1 each. Rows of
    equal `lane` can be computed together. `failed` are the inputs of a partial call that have no row, by their place.
    `context` is what `render` will need; `heavy` says that it takes so long (half a millisecond) that it belongs in a
    thread.
    """

    rows: Rows
    usage: Usage
    context: Any = None
    sizes: Sequence[int] | None = None
    lane: object = None
    failed: Mapping[int, ModelportError] = {}
    heavy: bool = False


@dataclass(frozen=True, slots=True)
class Packing:
    """How much is computed at once: at most `max_rows`, which together cost at most `max_cost` (None: any).

    Rows that are computed together all cost as much as the largest, the rest of them being padding.
    """

    max_rows: int
    max_cost: int | None = None

    @property
    def full_cost(self) -> int:
        """The most that a batch can cost: an estimate of what one costs under load."""
        return self.max_rows if self.max_cost is None else self.max_cost


class Runner(Protocol):
    """A loaded model. `prepare`, `run` and `render` may block; they run in threads where they would be felt."""

    @property
    def packing(self) -> Packing: ...

    def weigh(self, call: Call) -> int:
        """About what the call costs in the units of the packing, without looking at more of it than its length."""
        ...

    def is_light(self, call: Call) -> bool:
        """Whether `prepare` takes so little (well below a millisecond) that a thread would cost more."""
        ...

    def prepare(self, call: Call) -> Prepared:
        """Check and decode the inputs. Raises: BadRequest that names the input."""
        ...

    def run(self, blocks: Sequence[Any]) -> Sequence[Any]:
        """One result for each block, all computed together. Raises: Internal."""
        ...

    def render(self, call: Call, prepared: Prepared, results: Sequence[Any]) -> Delta:
        """The whole answer, from the results of the blocks that the call's rows were computed in, in their order."""
        ...

    def info(self) -> dict[str, Any]:
        """Facts for `/v1/models/{id}`: number of labels, schemas of inputs and outputs."""
        ...
