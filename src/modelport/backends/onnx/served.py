"""A loaded file that answers in two ways: as its kind does, and tensor by tensor."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from modelport.backends.batching.cost import CostModel
from modelport.backends.batching.work import Packing, Prepared, Runner
from modelport.backends.onnx.engine import Array, Engine, open_engine
from modelport.backends.onnx.options import OnnxOptions, UnusableModel, read_options
from modelport.backends.onnx.tensors import TensorFace, TensorRows
from modelport.calls import Call, Delta, ModelKind, Operation, Usage
from modelport.kit.clock import Clock

_MAX_ROWS = 2048
# Reading tensors takes no time, except for texts.
_LIGHT_BYTES = 4_000_000
# Models are loaded one after the other, and start-up waits for them.
_WARM_S = 0.5
# A member is looked up through its class more slowly than a name of the module.
_INFER = Operation.INFER


class KindRunner(Runner, Protocol):
    """The runner of one kind of model."""

    def sample(self, rows: int, size: int) -> Any:
        """A block of its own making, whose rows cost `size` each."""
        ...


class ServedModel:
    """The runner of its kind, and the tensors beside it: a `Runner` for every operation."""

    def __init__(self, runner: KindRunner, tensors: TensorFace) -> None:
        self._runner = runner
        self._tensors = tensors

    @property
    def packing(self) -> Packing:
        return self._runner.packing

    def warm(self, clock: Clock) -> CostModel:
        """Run it in the shapes that calls will have, and tell what these cost. Blocks, about half a second at most."""
        cost = CostModel(self.packing.full_cost)
        until_s = clock.monotonic_s() + _WARM_S
        for rows, size in _shapes(self.packing):
            block = self._runner.sample(rows, size)
            # The first run of a shape makes room for it; what is learnt is the second.
            for learn in (False, True):
                started_s = clock.monotonic_s()
                self._runner.run([block])
                if learn:
                    cost.learn(rows * size, clock.monotonic_s() - started_s)
            if clock.monotonic_s() > until_s:
                break
        return cost

    def weigh(self, call: Call) -> int:
        return self._tensors.weigh(call) if call.operation is _INFER else self._runner.weigh(call)

    def is_light(self, call: Call) -> bool:
        if call.operation is _INFER:
            return sum(len(tensor.data) for tensor in call.request.inputs) <= _LIGHT_BYTES
        return self._runner.is_light(call)

    def prepare(self, call: Call) -> Prepared:
        return self._tensors.prepare(call) if call.operation is _INFER else self._runner.prepare(call)

    def run(self, blocks: Sequence[Any]) -> Sequence[Any]:
        # A batch is of one lane, so all blocks are of one kind.
        return self._tensors.run(blocks) if isinstance(blocks[0], TensorRows) else self._runner.run(blocks)

    def render(self, call: Call, prepared: Prepared, results: Sequence[Any]) -> Delta:
        if call.operation is _INFER:
            return self._tensors.render(prepared, results)
        return self._runner.render(call, prepared, results)

    def info(self) -> dict[str, Any]:
        described = self._tensors.describe()
        return self._runner.info() | ({"tensors": described} if described is not None else {})


def _shapes(packing: Packing) -> list[tuple[int, int]]:
    """Rows and what each costs, from the cheapest batch to the largest, small ones more than once."""
    most = packing.max_rows
    if packing.max_cost is None:
        return [(rows, 1) for rows in (1, 1, 1, min(8, most), min(32, most), most)]
    sizes = [(1, 8), (1, 8), (1, 32), (min(8, most), 16), (1, 128), (min(8, most), 64)]
    return [(rows, size) for rows, size in sizes if rows * size <= packing.max_cost]


def open_model(
    path: Path, model_kind: ModelKind, configured: tuple[Mapping[str, Any], ...]
) -> tuple[ServedModel, OnnxOptions]:
    """Open a file and run it once. Blocks. Raises: UnusableModel."""
    early = read_options({}, *configured)
    engine = open_engine(path, threads=early.threads, slots=early.slots)
    options = read_options(engine.metadata, *configured)
    runner = _runner(engine, model_kind, options)
    return ServedModel(runner, _tensors(engine, model_kind, options)), options


def _runner(engine: Engine, model_kind: ModelKind, options: OnnxOptions) -> KindRunner:
    if model_kind is ModelKind.EMBEDDING:
        from modelport.backends.onnx.embeddings import EmbeddingRunner

        return EmbeddingRunner(engine, options)
    if model_kind is ModelKind.IMAGE:
        from modelport.backends.onnx.images import ImageRunner

        return ImageRunner(engine, options, read_labels(options.labels))
    if model_kind is ModelKind.TABULAR:
        from modelport.backends.onnx.tabular import TabularRunner

        return TabularRunner(engine, options, read_labels(options.labels))
    raise UnusableModel(f"the onnx backend serves images, embeddings and tabular data, not {model_kind}")


def _tensors(engine: Engine, model_kind: ModelKind, options: OnnxOptions) -> TensorFace:
    face = functools.partial(
        TensorFace, engine, max_rows=options.max_inputs or _MAX_ROWS, max_elements=options.max_elements
    )
    if model_kind is not ModelKind.EMBEDDING:
        return face(usage=_images if model_kind is ModelKind.IMAGE else _nothing)
    ids = next(port for port in engine.inputs if port.name == "input_ids")
    length = ids.shape[1] if len(ids.shape) == 2 else None
    return face(
        usage=_tokens,
        bounds={length: options.max_tokens} if isinstance(length, str) else {},
        row_size=lambda shape: shape[1] if len(shape) > 1 else 1,
    )


def _images(arrays: Mapping[str, Array]) -> Usage:
    return Usage(images=max(map(len, arrays.values())))


def _nothing(arrays: Mapping[str, Array]) -> Usage:
    return Usage()


def _tokens(arrays: Mapping[str, Array]) -> Usage:
    """Padding that the mask leaves out is free."""
    ids, mask = arrays["input_ids"], arrays.get("attention_mask")
    used = ids.size if mask is None else max(int(np.count_nonzero(mask)), len(ids))
    return Usage(input_tokens=int(used))


def read_labels(labels: list[str] | str) -> list[str]:
    """Labels from the configuration: a list, or a file with a JSON list or one label in a line."""
    if isinstance(labels, list):
        return labels
    try:
        text = Path(labels).expanduser().read_text(encoding="utf-8")
        found = json.loads(text) if text.lstrip().startswith("[") else text.splitlines()
    except (OSError, ValueError) as error:
        raise UnusableModel(f"the labels can't be read from {labels}") from error
    return [str(label) for label in found]
