"""The two models under measurement, made here, with requests and the answers that onnxruntime itself gives."""

from __future__ import annotations

import itertools
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime  # type: ignore[import-untyped]
import skimage.data  # type: ignore[import-untyped]

from modelport.catalog.prepare.onnx_file import GraphBuilder
from modelport.catalog.sources import prepared_dir

# Each of these requests is another one, so that answers that are mixed up within a batch are found out.
CASES = 8
_FEATURES, _CLASSES = 64, 2


@dataclass(frozen=True, slots=True)
class Model:
    """One model. `kind` is Modelport's, `shape` that of one input; `tolerance`: how far an answer may be off."""

    name: str
    title: str
    kind: str
    path: Path
    input: str
    output: str
    dtype: str
    shape: tuple[int, ...]
    max_batch: int
    tolerance: float
    inputs: tuple[Any, ...]
    expected: tuple[Any, ...]

    def environment(self, port: int) -> dict[str, str]:
        """What the programs in `programs/` read."""
        return {
            "MODEL": str(self.path),
            "INPUT": self.input,
            "OUTPUT": self.output,
            "DTYPE": self.dtype,
            "SHAPE": ",".join(map(str, self.shape)),
            "MAX_BATCH": str(self.max_batch),
            "PORT": str(port),
        }


def make_models(folder: Path) -> tuple[Model, Model]:
    """The image model and the tabular one. Raises: RuntimeError where the default models were not prepared."""
    return _image(), _tabular(folder)


def open_session(path: Path) -> Any:
    """onnxruntime on one thread, as every server has it."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def _image() -> Model:
    path = prepared_dir() / "efficientnet-lite0.onnx"
    if not path.is_file():
        raise RuntimeError("the default models are not prepared: make setup")
    photographs = [np.asarray(getattr(skimage.data, name)()) for name in ("chelsea", "coffee", "astronaut", "rocket")]
    inputs = tuple(
        np.ascontiguousarray(photograph[top : top + 224, top : top + 224])
        for photograph in photographs
        for top in (20, 70)
    )
    return _model("image", "EfficientNet-lite0, uint8 224×224×3", path, inputs, kind="image", max_batch=8)


def _tabular(folder: Path) -> Model:
    random = np.random.default_rng(5)
    graph = GraphBuilder(opset=21)
    x = graph.input("features", "float32", ["batch", _FEATURES])
    weights = random.normal(0, 0.3, (_FEATURES, _CLASSES)).astype(np.float32)
    logits = graph.node(
        "Gemm", x, graph.constant(weights, "weights"), graph.constant(np.zeros(_CLASSES, np.float32), "bias")
    )
    graph.node("Softmax", logits, name="probabilities", axis=1)
    graph.output("probabilities", "float32", ["batch", _CLASSES])
    path = folder / "tabular.onnx"
    described = {"features": [f"f{index}" for index in range(_FEATURES)], "output": "value"}
    path.write_bytes(graph.build("bench-tabular", metadata={"modelport": json.dumps(described)}))
    inputs = tuple(random.normal(0, 1, _FEATURES).astype(np.float32) for _ in range(CASES))
    return _model("tabular", "logistic regression, 64 floats", path, inputs, kind="tabular", max_batch=32)


def _model(name: str, title: str, path: Path, inputs: tuple[Any, ...], *, kind: str, max_batch: int) -> Model:
    session = open_session(path)
    given, wanted = session.get_inputs()[0].name, session.get_outputs()[0].name
    expected = tuple(session.run([wanted], {given: value[None]})[0][0].astype(np.float32) for value in inputs)
    spread = min(float(np.abs(one - two).max()) for one, two in itertools.combinations(expected, 2))
    if spread < 0.02:
        raise RuntimeError(f"the {name} model answers alike whatever it is asked")
    tolerance = min(1e-2, spread / 10)
    return Model(
        name,
        title,
        kind,
        path,
        given,
        wanted,
        str(inputs[0].dtype),
        inputs[0].shape,
        max_batch,
        tolerance,
        inputs,
        expected,
    )
