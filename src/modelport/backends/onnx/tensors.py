"""Tensors in, tensors out: any ONNX model as the Open Inference Protocol sees it.

Rows of different calls are computed together where the file says that the first dimension of everything that goes in
and comes out is one and the same, of any size.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from modelport.backends.batching.work import Prepared
from modelport.backends.onnx.elements import DATATYPES, ITEM_BYTES, read_elements, write_elements
from modelport.backends.onnx.engine import Array, Engine, Port, split
from modelport.calls import Call, Delta, Tensor, Usage
from modelport.errors import BadRequest, Internal
from modelport.requests import InferRequest

# Elements of all inputs of one call: 64 MB of floats.
MAX_ELEMENTS = 16_777_216
_OUT_OF_MEMORY = "allocate"


@dataclass(frozen=True, slots=True)
class TensorRows:
    """The inputs of a call, by name, and the outputs wanted. Slices are views of the same rows of every input.

    `whole` tensors have no rows: they are one piece, computed alone.
    """

    arrays: Mapping[str, Array]
    outputs: tuple[str, ...]
    whole: bool

    def __len__(self) -> int:
        return 1 if self.whole else len(next(iter(self.arrays.values())))

    def __getitem__(self, rows: slice) -> TensorRows:
        if self.whole:
            return self
        return TensorRows({name: array[rows] for name, array in self.arrays.items()}, self.outputs, False)

    @property
    def lane(self) -> object:
        """Equal for what can be computed together."""
        if self.whole:
            return object()
        return self.outputs, tuple(array.shape[1:] for array in self.arrays.values())


class TensorFace:
    """Checks tensors against a model's own inputs, runs them, and hands the outputs back.

    `usage` counts the inputs as the kind of the model does, and `row_size` what a row of this shape costs; `bounds` are
    the most that a dimension which the file names may have.
    """

    def __init__(
        self,
        engine: Engine,
        usage: Callable[[Mapping[str, Array]], Usage],
        *,
        max_rows: int,
        max_elements: int = MAX_ELEMENTS,
        bounds: Mapping[str, int] | None = None,
        row_size: Callable[[Sequence[int]], int] = lambda shape: 1,
    ) -> None:
        self._engine = engine
        self._usage = usage
        self._max_rows = max_rows
        self._max_elements = max_elements
        self._bounds = bounds or {}
        self._row_size = row_size
        self._inputs = {port.name: port for port in engine.inputs}
        self._outputs = {port.name: port for port in engine.outputs if port.dtype in DATATYPES}
        # What is no tensor (a list, a map) can be neither sent nor given back.
        self.usable = bool(self._outputs) and all(port.dtype in DATATYPES for port in engine.inputs)
        self.joined = self.usable and _joined([*engine.inputs, *self._outputs.values()])

    def describe(self) -> dict[str, list[dict[str, Any]]] | None:
        """Names, datatypes and shapes, with -1 for any size. None where the model has others than tensors."""
        if not self.usable:
            return None
        return {
            "inputs": [_described(port) for port in self._inputs.values()],
            "outputs": [_described(port) for port in self._outputs.values()],
        }

    def weigh(self, call: Call) -> int:
        """About what the call costs; whatever is wrong with it is found later."""
        shape = max((tensor.shape for tensor in call.request.inputs), key=lambda shape: shape[:1], default=())
        return max(shape[0] * self._row_size(shape), 1) if shape else 1

    def prepare(self, call: Call) -> Prepared:
        """Raises: BadRequest that names the tensor and what was expected."""
        if not self.usable:
            raise BadRequest(
                f"The model {call.model!r} takes or gives what is no tensor, so it can't be called this way.",
                param="model",
            )
        request: InferRequest = call.request
        outputs = self._wanted(request.outputs)
        arrays = self._arrays(request.inputs)
        rows = TensorRows(arrays, outputs, not self.joined)
        cost = self.weigh(call)
        sizes = [cost // len(rows)] * len(rows) if cost != len(rows) else None
        return Prepared(rows, self._usage(arrays), sizes=sizes, lane=rows.lane)

    def run(self, blocks: Sequence[TensorRows]) -> list[list[Array]]:
        """For each block its outputs, in the order in which they were wanted. Raises: BadRequest, Internal."""
        first = blocks[0]
        feeds = dict(first.arrays)
        if len(blocks) > 1:
            feeds = {name: np.concatenate([block.arrays[name] for block in blocks]) for name in feeds}
        results = self._compute(first.outputs, feeds)
        if first.whole:
            return [results]
        rows = sum(map(len, blocks))
        if any(np.ndim(result) == 0 or len(result) != rows for result in results):
            raise Internal(internal="the model's outputs don't have the rows of its inputs, as its file says they do")
        parts = [split(result, blocks) for result in results]
        return [list(block) for block in zip(*parts, strict=True)]

    def _compute(self, outputs: tuple[str, ...], feeds: dict[str, Array]) -> list[Array]:
        try:
            return self._engine.run(list(outputs), feeds)
        except Internal as error:
            if _OUT_OF_MEMORY in (error.internal or "").lower():
                raise
            # Their values are the caller's own: a fault of the model here would let one caller bring it into discredit.
            raise BadRequest(
                "The model can't compute these tensors: their values or sizes don't fit what is inside of it.",
                param="inputs",
                internal=error.internal,
            ) from error

    def render(self, prepared: Prepared, results: Sequence[Sequence[Array]]) -> Delta:
        """`results` are the outputs of each block that the call was computed in."""
        arrays = [parts[0] if len(parts) == 1 else np.concatenate(parts) for parts in zip(*results, strict=True)]
        rows: TensorRows = prepared.rows  # type: ignore[assignment]
        value = [
            Tensor(name, DATATYPES[self._outputs[name].dtype], array.shape, write_elements(array))
            for name, array in zip(rows.outputs, map(np.asarray, arrays), strict=True)
        ]
        return Delta(whole=True, value=value, usage=prepared.usage)

    def _wanted(self, names: list[str]) -> tuple[str, ...]:
        for index, name in enumerate(names):
            if name not in self._outputs:
                raise _wrong(f"there is no output {name[:80]!r}; the model has {_listed(self._outputs)}", "outputs")
            if name in names[:index]:
                raise _wrong(f"the output {name!r} is asked for twice", "outputs")
        return tuple(names) or tuple(self._outputs)

    def _arrays(self, tensors: list[Tensor]) -> dict[str, Array]:
        given: dict[str, Tensor] = {}
        for index, tensor in enumerate(tensors):
            if tensor.name not in self._inputs:
                found = f"there is no input {tensor.name[:80]!r}; the model has {_listed(self._inputs)}"
                raise _wrong(found, f"inputs[{index}]")
            if tensor.name in given:
                raise _wrong(f"the input {tensor.name!r} is there twice", f"inputs[{index}]")
            given[tensor.name] = tensor
        missing = [name for name in self._inputs if name not in given]
        if missing:
            raise _wrong(f"the input {missing[0]!r} is missing; the model takes {_listed(self._inputs)}", "inputs")
        sizes: dict[str, int] = {}
        for name, port in self._inputs.items():
            self._check(given[name], port, sizes)
        if sum(math.prod(tensor.shape) for tensor in tensors) > self._max_elements:
            raise _wrong(f"together they have more than {self._max_elements:,} elements", "inputs")
        return {name: read_elements(given[name]) for name in self._inputs}

    def _check(self, tensor: Tensor, port: Port, sizes: dict[str, int]) -> None:
        """`sizes` are those of the named dimensions so far: one name has one size in a call."""
        expected, shape = DATATYPES[port.dtype], tensor.shape
        if tensor.datatype != expected:
            raise _wrong(f"{port.name!r} is {tensor.datatype[:20]}, the model takes {expected}", port.name)
        if len(shape) != len(port.shape) or any(size < 0 for size in shape):
            raise self._misshapen(tensor, port)
        for place, (size, declared) in enumerate(zip(shape, port.shape, strict=True)):
            if isinstance(declared, int):
                if size != declared:
                    raise self._misshapen(tensor, port)
            elif isinstance(declared, str) and sizes.setdefault(declared, size) != size:
                raise _wrong(f"{declared!r} is {sizes[declared]} in one input and {size} in {port.name!r}", port.name)
            if size > (most := self._most(place, declared)):
                raise _wrong(f"{port.name!r} has {size} in dimension {place}; at most {most} are accepted", port.name)
        if self.joined and shape[0] == 0:
            raise _wrong(f"{port.name!r} has no rows", port.name)
        bytes_each = ITEM_BYTES.get(expected)
        if bytes_each and len(tensor.data) != math.prod(shape) * bytes_each:
            raise _wrong(
                f"{port.name!r} has {len(tensor.data)} bytes of data, its shape {list(shape)} takes "
                f"{math.prod(shape) * bytes_each}",
                port.name,
            )

    def _most(self, place: int, declared: int | str | None) -> int:
        if place == 0 and self.joined:
            return self._max_rows
        return self._bounds.get(declared, self._max_elements) if isinstance(declared, str) else self._max_elements

    @staticmethod
    def _misshapen(tensor: Tensor, port: Port) -> BadRequest:
        shape = _described(port)["shape"]
        return _wrong(f"{port.name!r} has the shape {list(tensor.shape)[:16]}, the model takes {shape}", port.name)


def _joined(ports: Sequence[Port]) -> bool:
    """Whether all have rows, and the same ones."""
    firsts = [port.shape[0] if port.shape else 0 for port in ports]
    return not any(isinstance(first, int) for first in firsts) and len(set(firsts)) == 1


def _described(port: Port) -> dict[str, Any]:
    shape = [size if isinstance(size, int) else -1 for size in port.shape]
    return {"name": port.name, "datatype": DATATYPES[port.dtype], "shape": shape}


def _listed(names: Mapping[str, Any]) -> str:
    return ", ".join(list(names)[:20])


def _wrong(found: str, param: str) -> BadRequest:
    return BadRequest(f"{found[:1].upper()}{found[1:]}.", param=param)
