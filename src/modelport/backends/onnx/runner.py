"""What the kinds of models share: checks of what a call asks, and inputs that fail one by one."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from modelport.calls import Call
from modelport.errors import BadRequest, ModelportError

Row = TypeVar("Row")


def each_input(
    call: Call, inputs: Sequence[Any], prepare: Callable[[Any, str], Row], *, param: str = "inputs"
) -> tuple[list[Row], dict[int, ModelportError]]:
    """Every input's row, and of a partial call the errors of those that have none, by their place.

    Raises: BadRequest of the first that fails, where the call is not partial.
    """
    rows: list[Row] = []
    failed: dict[int, ModelportError] = {}
    for index, value in enumerate(inputs):
        try:
            rows.append(prepare(value, f"{param}[{index}]"))
        except BadRequest as error:
            if not call.partial:
                raise
            failed[index] = error
    return rows, failed


def with_failed(values: Sequence[Any], failed: Mapping[int, ModelportError]) -> list[Any]:
    """One member for each input: its value, or its error."""
    if not failed:
        return list(values)
    good = iter(values)
    return [failed[place] if place in failed else next(good) for place in range(len(values) + len(failed))]


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
