"""What each kind of model brings: how a call becomes rows, rows become results, and results an answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from modelport.calls import Call, Delta, Usage
from modelport.errors import BadRequest


@dataclass(frozen=True, slots=True)
class Prepared:
    """A call that is ready to be computed: one row for each input, what it costs, and what `render` will need."""

    rows: Sequence[Any]
    usage: Usage
    context: Any = None


class Runner(Protocol):
    """A loaded model of one kind. All methods but `is_light` and `info` may block and run in threads."""

    @property
    def max_batch(self) -> int:
        """The most rows that are computed together."""
        ...

    def is_light(self, call: Call) -> bool:
        """Whether `prepare` takes so little (well below a millisecond) that a thread would cost more."""
        ...

    def prepare(self, call: Call) -> Prepared:
        """Check and decode the inputs. Raises: BadRequest that names the input."""
        ...

    def joins(self, batch: Sequence[Any], row: Any) -> bool:
        """Whether computing `row` together with these is no waste."""
        ...

    def run(self, rows: Sequence[Any]) -> Sequence[Any]:
        """One result for each row. Raises: Internal."""
        ...

    def render(self, call: Call, prepared: Prepared, results: Sequence[Any]) -> Delta:
        """The whole answer."""
        ...

    def info(self) -> dict[str, Any]:
        """Facts for `/v1/models/{id}`: number of labels, schemas of inputs and outputs."""
        ...


def check_count(inputs: Sequence[Any], most: int, *, param: str) -> None:
    """Raises: BadRequest when a call has more inputs than the model takes."""
    if len(inputs) > most:
        raise BadRequest(f"{len(inputs)} inputs are too many: at most {most} in one call.", param=param)


def check_options(options: dict[str, Any], known: frozenset[str]) -> None:
    """Raises: BadRequest for an option that this kind of model does not have, since it would do nothing."""
    for name in options:
        if name not in known:
            choice = f"it has {', '.join(sorted(known))}" if known else "it has none"
            raise BadRequest(f"The model has no option {name[:80]!r}: {choice}.", param="options")


def shown(value: Any) -> str:
    """What kind of JSON value something is, for messages; never the value itself."""
    if value is None:
        return "null"
    names = {bool: "a boolean", str: "a string", int: "a number", float: "a number", list: "a list", dict: "an object"}
    return names.get(type(value), "bytes")
