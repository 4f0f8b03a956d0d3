"""The species of an iris from four measurements: a logistic regression, trained here, in two versions.

Small enough to read, it shows what tabular models and versions look like. Version 1 is trained on centimetres as
they are; version 2 on standardised ones and with a milder penalty, which halves the loss on unseen flowers.
"""

from __future__ import annotations

import json

import numpy as np
from numpy.typing import NDArray

from modelport.catalog.prepare.onnx_file import GraphBuilder

VERSIONS = ("1", "2")
# Rounding hides the last bits in which one processor's arithmetic differs from another's; 4 decimals move no
# probability by more than 0.001.
_DECIMALS = 4
# Of the values tried (1 to 300), the one with the least loss in cross-validation: 0.074, against 0.140 for version 1.
_TUNED_C = 30.0


def build_iris(version: str) -> bytes:
    """The ONNX file of a version. Needs scikit-learn."""
    # Not imported above, because only preparation has it.
    from sklearn.datasets import load_iris  # type: ignore[import-untyped]

    data = load_iris()
    features = [name.removesuffix(" (cm)").replace(" ", "_") + "_cm" for name in data.feature_names]
    labels = [str(name) for name in data.target_names]
    weights, bias = _trained(data.data, data.target, standardise=version == "2")
    graph = GraphBuilder(opset=21)
    x = graph.input("features", "float32", ["batch", len(features)])
    logits = graph.node("Gemm", x, graph.constant(weights, "weights"), graph.constant(bias, "bias"))
    graph.node("Softmax", logits, name="probabilities", axis=1)
    graph.node("ArgMax", "probabilities", name="index", axis=1, keepdims=0)
    graph.output("probabilities", "float32", ["batch", len(labels)])
    graph.output("index", "int64", ["batch"])
    description = {"features": features, "labels": labels, "output": "probabilities"}
    return graph.build(f"iris-{version}", metadata={"modelport": json.dumps(description)})


def _trained(
    x: NDArray[np.float64], y: NDArray[np.int64], *, standardise: bool
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Weights (features, labels) and bias (labels) for measurements as they are."""
    from sklearn.linear_model import LogisticRegression  # type: ignore[import-untyped]

    mean, scale = np.zeros(x.shape[1]), np.ones(x.shape[1])
    if standardise:
        mean, scale = x.mean(axis=0), x.std(axis=0)
    # This solver reaches the optimum to 12 digits; the default one stops some way before, elsewhere on each machine.
    model = LogisticRegression(C=_TUNED_C if standardise else 1.0, solver="newton-cholesky", tol=1e-10, max_iter=1000)
    model.fit((x - mean) / scale, y)
    weights = model.coef_ / scale
    bias = model.intercept_ - weights @ mean
    # Adding one number to all logits changes nothing: with their mean at zero there is one solution, not many.
    weights, bias = weights - weights.mean(axis=0), bias - bias.mean()
    return np.round(weights.T, _DECIMALS).astype(np.float32), np.round(bias, _DECIMALS).astype(np.float32)
