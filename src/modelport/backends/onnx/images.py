"""Image classification: pictures in, the most probable labels out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from modelport.backends.batching.work import Packing, Prepared
from modelport.backends.onnx.engine import Array, Engine, Port, rows_together, softmax, split
from modelport.backends.onnx.options import OnnxOptions, UnusableModel
from modelport.backends.onnx.pictures import PictureLimits, picture_bytes, to_pixels
from modelport.backends.onnx.runner import check_count, check_options, each_input, with_failed
from modelport.calls import Call, Delta, Usage
from modelport.errors import BadRequest

_MAX_INPUTS = 64
_OPTIONS = frozenset({"top_k"})
# The convolutions of one picture fill the processor already; a second one beside it only makes both wait.
_MAX_BATCH = 1
# Ranking the labels of one takes about 0.1 ms.
_LIGHT_ANSWERS = 4


class ImageRunner:
    """Classifies pictures with a model whose input is uint8 pixels, or float in one of the two usual layouts."""

    def __init__(self, engine: Engine, options: OnnxOptions, labels: list[str]) -> None:
        if len(engine.inputs) != 1:
            raise UnusableModel(f"an image model has one input, this one has {len(engine.inputs)}")
        self._engine = engine
        self.packing = Packing(rows_together(engine.inputs[0], options.max_batch or _MAX_BATCH))
        self._options = options
        self._input = engine.inputs[0]
        self._output = engine.outputs[0].name
        self._channels_first, self._size = _layout(self._input, options.size)
        self._limits = PictureLimits(options.max_image_bytes, options.max_pixels)
        width = self.run([[np.zeros((self._size, self._size, 3), np.uint8)]])[0].size
        self._labels = labels or [str(index) for index in range(width)]
        if len(self._labels) != width:
            raise UnusableModel(f"the model tells {width} classes apart, but there are {len(labels)} labels")

    def sample(self, rows: int, size: int) -> list[NDArray[np.uint8]]:
        return [np.zeros((self._size, self._size, 3), np.uint8)] * rows

    def weigh(self, call: Call) -> int:
        return len(call.request.inputs)

    def is_light(self, call: Call) -> bool:
        return False

    def prepare(self, call: Call) -> Prepared:
        check_options(call.request.options, _OPTIONS)
        top_k = self._top_k(call.request.options.get("top_k"))
        inputs = call.request.inputs
        check_count(inputs, self._options.max_inputs or _MAX_INPUTS, param="inputs")
        rows, failed = each_input(call, inputs, self._pixels)
        return Prepared(rows, Usage(images=len(rows)), top_k, failed=failed, heavy=len(rows) > _LIGHT_ANSWERS)

    def run(self, blocks: Sequence[Sequence[NDArray[np.uint8]]]) -> Sequence[Array]:
        pixels: Array = np.stack([row for block in blocks for row in block])
        if self._input.dtype != "uint8":
            mean, std = (np.array(part, np.float32) for part in (self._options.mean, self._options.std))
            pixels = ((pixels.astype(np.float32) - mean) / std).astype(self._input.dtype)
        if self._channels_first:
            pixels = np.ascontiguousarray(pixels.transpose(0, 3, 1, 2))
        (scores,) = self._engine.run([self._output], {self._input.name: pixels})
        flat = scores.reshape(len(pixels), -1)
        return split(flat if self._options.output == "probabilities" else softmax(flat), blocks)

    def render(self, call: Call, prepared: Prepared, results: Sequence[Array]) -> Delta:
        value = [self._ranked(row, prepared.context) for block in results for row in block]
        return Delta(whole=True, value=with_failed(value, prepared.failed), usage=prepared.usage)

    def info(self) -> dict[str, Any]:
        row = {
            "type": "object",
            "properties": {
                "label": {"type": "string"},
                "confidence": {"type": "number", "minimum": 0, "maximum": 1},
                "index": {"type": "integer", "minimum": 0, "maximum": len(self._labels) - 1},
            },
            "required": ["label", "confidence", "index"],
        }
        return {
            "num_labels": len(self._labels),
            "labels": self._labels,
            "input_schema": {
                "type": "string",
                "description": "A JPEG, PNG, WebP, GIF or BMP picture as base64, or as a data URL.",
            },
            "output_schema": {"type": "array", "items": row, "maxItems": len(self._labels)},
        }

    def _pixels(self, value: Any, param: str) -> NDArray[np.uint8]:
        data = picture_bytes(value, self._limits, param=param)
        fraction = self._options.crop_fraction
        return to_pixels(data, self._limits, size=self._size, crop_fraction=fraction, param=param)

    def _top_k(self, asked: Any) -> int:
        if asked is None:
            return min(self._options.top_k, len(self._labels))
        if type(asked) is not int or not 1 <= asked <= len(self._labels):
            raise BadRequest(f"top_k is a whole number from 1 to {len(self._labels)}.", param="options.top_k")
        return asked

    def _ranked(self, probabilities: NDArray[Any], top_k: int) -> list[dict[str, Any]]:
        # A stable sort, so that equal ones always come in the order of their index.
        best = np.argsort(-probabilities, kind="stable")[:top_k].tolist()
        return [
            {"label": self._labels[index], "confidence": round(float(probabilities[index]), 6), "index": index}
            for index in best
        ]


def _layout(port: Port, size: int | None) -> tuple[bool, int]:
    """Whether colours come before rows, and the side of the square that the model takes."""
    if port.dtype not in ("uint8", "float32", "float16", "float64") or len(port.shape) != 4:
        raise UnusableModel(f"the model's input {port.name!r} is no batch of pictures: {port.dtype} {list(port.shape)}")
    channels_first = port.shape[1] == 3
    if not channels_first and port.shape[3] != 3:
        raise UnusableModel(f"the model's input {port.name!r} has no axis of 3 colours: {list(port.shape)}")
    side = size or port.shape[2]
    if not isinstance(side, int):
        raise UnusableModel("the model takes pictures of any size: set the option 'size'")
    return channels_first, side
