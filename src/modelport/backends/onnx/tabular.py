"""Tabular data: rows of numbers in, a label with probabilities (or a number) out."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from modelport.backends.batching.work import Packing, Prepared
from modelport.backends.onnx.engine import Array, Engine, rows_together, softmax, split
from modelport.backends.onnx.options import OnnxOptions, UnusableModel
from modelport.backends.onnx.runner import check_count, check_options, each_input, shown, with_failed
from modelport.calls import Call, Delta, Usage
from modelport.errors import BadRequest, ModelportError

_MAX_INPUTS = 2048
_MAX_BATCH = 256
# Checking this many numbers takes about 0.1 ms.
_LIGHT_NUMBERS = 1_000
_NUMBERS = frozenset({int, float})
# Models compute in single precision, where anything larger is infinite.
_LARGEST = float(np.finfo(np.float32).max)


class TabularRunner:
    """Classifies or rates rows of numbers."""

    def __init__(self, engine: Engine, options: OnnxOptions, labels: list[str]) -> None:
        port = engine.inputs[0]
        if len(engine.inputs) != 1 or len(port.shape) != 2 or not port.dtype.startswith("float"):
            raise UnusableModel("a tabular model has one input of rows of numbers: float (batch, features)")
        self._engine = engine
        self.packing = Packing(rows_together(engine.inputs[0], options.max_batch or _MAX_BATCH))
        self._options = options
        self._input = port
        declared = port.shape[1] if isinstance(port.shape[1], int) else len(options.features)
        if not declared:
            raise UnusableModel("the model takes rows of any width: name them with the option 'features'")
        self._features = options.features or [f"feature_{index}" for index in range(declared)]
        if len(self._features) != declared:
            raise UnusableModel(f"the model takes {declared} features, but {len(self._features)} are named")
        self._output = _scores(engine)
        width = np.size(self.run([np.zeros((1, declared))])[0])
        self._labels = labels or ([] if options.output == "value" or width == 1 else [str(i) for i in range(width)])
        if self._labels and len(self._labels) != width:
            raise UnusableModel(f"the model tells {width} classes apart, but there are {len(self._labels)} labels")

    def sample(self, rows: int, size: int) -> Array:
        return np.zeros((rows, len(self._features)))

    def weigh(self, call: Call) -> int:
        return len(call.request.inputs)

    def is_light(self, call: Call) -> bool:
        return len(call.request.inputs) * len(self._features) <= _LIGHT_NUMBERS

    def prepare(self, call: Call) -> Prepared:
        check_options(call.request.options, frozenset())
        inputs = call.request.inputs
        check_count(inputs, self._options.max_inputs or _MAX_INPUTS, param="inputs")
        failed: dict[int, ModelportError] = {}
        rows = self._plain(inputs)
        if rows is None:
            listed, failed = each_input(call, inputs, self._row)
            rows = np.array(listed, np.float64).reshape(len(listed), len(self._features))
        return Prepared(rows, Usage(), failed=failed, heavy=not self.is_light(call))

    def run(self, blocks: Sequence[Array]) -> Sequence[Array]:
        rows = blocks[0] if len(blocks) == 1 else np.concatenate(blocks)
        (scores,) = self._engine.run([self._output], {self._input.name: rows.astype(self._input.dtype)})
        flat = scores.reshape(len(rows), -1)
        if self._options.output == "logits" and flat.shape[1] > 1:
            flat = softmax(flat)
        return split(flat, blocks)

    def render(self, call: Call, prepared: Prepared, results: Sequence[Array]) -> Delta:
        value = [self._prediction(row) for block in results for row in block.tolist()]
        return Delta(whole=True, value=with_failed(value, prepared.failed), usage=prepared.usage)

    def info(self) -> dict[str, Any]:
        number = {"type": "number"}
        named = {
            "type": "object",
            "properties": dict.fromkeys(self._features, number),
            "required": self._features,
            "additionalProperties": False,
        }
        count = len(self._features)
        listed = {"type": "array", "items": number, "minItems": count, "maxItems": count}
        return {
            "num_labels": len(self._labels),
            "labels": self._labels,
            "features": self._features,
            "input_schema": {"anyOf": [listed, named]},
            "output_schema": self._output_schema(),
        }

    def _output_schema(self) -> dict[str, Any]:
        number = {"type": "number"}
        if not self._labels:
            return {"type": "object", "properties": {"value": number}, "required": ["value"]}
        return {
            "type": "object",
            "properties": {
                "label": {"enum": self._labels},
                "index": {"type": "integer"},
                "probabilities": {"type": "object", "properties": dict.fromkeys(self._labels, number)},
            },
            "required": ["label", "index", "probabilities"],
        }

    def _plain(self, inputs: Sequence[Any]) -> Array | None:
        """All rows at once, where each is a list of as many usual numbers as the model takes; else None."""
        count = len(self._features)
        for value in inputs:
            if type(value) is not list or len(value) != count or not _NUMBERS.issuperset(map(type, value)):
                return None
        try:
            rows = np.array(inputs, np.float64)
        except OverflowError:
            return None
        return rows if not rows.size or np.abs(rows).max() <= _LARGEST else None

    def _row(self, value: Any, param: str) -> list[float]:
        if isinstance(value, dict):
            value = self._in_order(value, param)
        if not isinstance(value, list):
            raise self._wrong(f"it is {shown(value)}", param)
        if len(value) != len(self._features):
            raise self._wrong(f"it has {len(value)} values", param)
        return [self._number(item, index, param) for index, item in enumerate(value)]

    def _in_order(self, value: dict[str, Any], param: str) -> list[Any]:
        missing = [name for name in self._features if name not in value]
        unknown = sorted(set(value) - set(self._features))
        if missing or unknown:
            told = f"{', '.join(missing)} is missing" if missing else f"{unknown[0][:80]!r} is unknown"
            raise self._wrong(told, param)
        return [value[name] for name in self._features]

    def _number(self, item: Any, index: int, param: str) -> float:
        if isinstance(item, bool) or not isinstance(item, int | float):
            raise self._wrong(f"{self._features[index]} is {shown(item)}", param)
        if not math.isfinite(item) or abs(item) > _LARGEST:
            raise self._wrong(f"{self._features[index]} is not a finite number", param)
        return float(item)

    def _wrong(self, found: str, param: str) -> BadRequest:
        expected = ", ".join(self._features[:50])
        return BadRequest(
            f"{param}: {found}. An input is a list of {len(self._features)} numbers or an object with {expected}.",
            param=param,
        )

    def _prediction(self, scores: list[float]) -> dict[str, Any]:
        values = [round(value, 6) for value in scores]
        if not self._labels:
            return {"value": values[0] if len(values) == 1 else values}
        index = scores.index(max(scores))
        return {
            "label": self._labels[index],
            "index": index,
            "probabilities": dict(zip(self._labels, values, strict=True)),
        }


def _scores(engine: Engine) -> str:
    """The output that holds a number for each class; converters put a label beside it, in either order."""
    for port in engine.outputs:
        if port.dtype.startswith("float") and port.shape:
            return port.name
    raise UnusableModel("the model has no output of numbers (skl2onnx: convert with zipmap=False)")
