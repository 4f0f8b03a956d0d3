"""onnxruntime behind a small face: open a file, know its inputs and outputs, run it."""

from __future__ import annotations

import itertools
import os
from collections.abc import Mapping, Sequence, Sized
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime  # type: ignore[import-untyped]
from numpy.typing import NDArray
from onnxruntime.capi import onnxruntime_pybind11_state as _native  # type: ignore[import-untyped]

from modelport.backends.onnx.guard import check_file
from modelport.backends.onnx.options import UnusableModel
from modelport.errors import Internal

Array = NDArray[Any]

# The engine's exceptions have no common base of their own. RuntimeError and ValueError are what its Python half raises.
_ENGINE_ERRORS: tuple[type[Exception], ...] = (
    RuntimeError,
    ValueError,
    *(value for value in vars(_native).values() if isinstance(value, type) and issubclass(value, Exception)),
)
# More threads than this gain nothing for models of this size, and take cores from the gateway.
_MOST_THREADS = 4
_SEVERITY_ERROR = 3


@dataclass(frozen=True, slots=True)
class Port:
    """One input or output: its name, numpy type and shape (words and None stand for any size)."""

    name: str
    dtype: str
    shape: tuple[int | str | None, ...]


class Engine:
    """An open model. `run` may be called from any thread, and lets other Python threads go on meanwhile."""

    def __init__(self, session: Any) -> None:
        self._session = session
        # The session's own `run` looks for other devices and missing inputs first, which takes half as long as a small
        # model; neither occurs here.
        self._run = session._sess.run
        self.inputs = [_port(node) for node in session.get_inputs()]
        self.outputs = [_port(node) for node in session.get_outputs()]

    @property
    def metadata(self) -> Mapping[str, str]:
        """The properties that the file's maker wrote into it."""
        return dict(self._session.get_modelmeta().custom_metadata_map)

    def run(self, outputs: list[str], feeds: dict[str, Array]) -> list[Array]:
        """The named outputs. Raises: Internal when the model fails on what it was given."""
        try:
            return list(self._run(outputs, feeds, None))
        except _ENGINE_ERRORS as error:
            raise Internal("The model failed on this input.", internal=str(error)) from error


def open_engine(path: Path, *, threads: int | None, slots: int = 1) -> Engine:
    """Check and load a file, which `slots` threads will run at one time. Blocks. Raises: UnusableModel."""
    check_file(path)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or default_threads(slots)
    options.inter_op_num_threads = 1
    options.log_severity_level = _SEVERITY_ERROR
    # Threads that spin between two calls would take the gateway's core.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    try:
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except _ENGINE_ERRORS as error:
        raise UnusableModel(f"the engine can't load {path.name}: {error}") from error
    return Engine(session)


def default_threads(slots: int = 1) -> int:
    """Each slot's share of the cores, up to the number that still helps."""
    return max(1, min(available_cores() // slots, _MOST_THREADS))


def slots_within(slots: int, threads: int | None) -> int:
    """As many of the slots as there are cores for; one always."""
    return max(1, min(slots, available_cores() // (threads or 1)))


def available_cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def rows_together(port: Port, wanted: int) -> int:
    """How many rows can be computed at once. Raises: UnusableModel for a file made for a certain number of them."""
    first = port.shape[0] if port.shape else 1
    if isinstance(first, int) and first != 1:
        raise UnusableModel(f"the model takes exactly {first} rows at a time: export it with a free first dimension")
    return 1 if isinstance(first, int) else wanted


def softmax(logits: Array) -> Array:
    """Probabilities along the last axis."""
    shifted = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return np.asarray(shifted / shifted.sum(axis=-1, keepdims=True))


def split(rows: Array, blocks: Sequence[Sized]) -> list[Array]:
    """The rows that belong to each block, in order, as views."""
    if len(blocks) == 1:
        return [rows]
    ends = list(itertools.accumulate(map(len, blocks)))
    return [rows[end - len(block) : end] for block, end in zip(blocks, ends, strict=True)]


_DTYPES = {"float": "float32", "double": "float64"}


def _port(node: Any) -> Port:
    inner = str(node.type).removeprefix("tensor(").removesuffix(")")
    shape = node.shape if isinstance(node.shape, list) else []
    return Port(node.name, _DTYPES.get(inner, inner), tuple(shape))
