"""What the configuration can say about a model that is a Python class."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import msgspec

_Positive = Annotated[int, msgspec.Meta(ge=1)]
_Seconds = Annotated[float, msgspec.Meta(gt=0)]


class UnusablePython(Exception):
    """The model can't be served. The message tells the operator why; it becomes the model's status."""


class PythonOptions(msgspec.Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    """All have defaults that serve."""

    class_name: str = ""  # Which class of the file; empty: the only one that has `predict`.
    arguments: dict[str, Any] = {}  # Given to the class when it is made.
    processes: Annotated[int, msgspec.Meta(ge=1, le=64)] = 1  # Each with the model in its own memory.
    max_batch: Annotated[int, msgspec.Meta(ge=1, le=1024)] = 32  # Inputs computed together.
    max_inputs: Annotated[int, msgspec.Meta(ge=1, le=100_000)] = 2048  # Inputs in one call.
    queue: _Positive = 256  # Calls inside at one time; more get 503.
    slo_ms: _Seconds | None = None  # Calls that would take longer are refused with 503; empty: 30 s.
    load_timeout_s: _Seconds = 300.0
    predict_timeout_s: _Seconds = 60.0  # A batch that takes longer is given up, and its process ended.
    memory_mb: _Positive | None = None  # The most address space of each process.
    environment: dict[str, str] = {}  # Beside what every process has; nothing of the gateway's own is passed on.


def read_options(*configured: Mapping[str, Any]) -> PythonOptions:
    """The options in force; later ones win. Raises: UnusablePython that names the wrong one."""
    merged: dict[str, Any] = {}
    for layer in configured:
        merged |= layer
    try:
        return msgspec.convert(merged, PythonOptions)
    except msgspec.ValidationError as error:
        raise UnusablePython(f"the model's options are not valid: {error}") from error
