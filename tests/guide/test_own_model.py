"""A model of your own: train it, save it as ONNX, write a few lines of configuration."""

from __future__ import annotations

import hashlib
from decimal import Decimal
from pathlib import Path

import pytest
from sklearn.datasets import load_wine
from sklearn.linear_model import LogisticRegression

from modelport.catalog.prepare.onnx_file import GraphBuilder
from tests.serving import Server
from tests.waiting import wait_until


@pytest.fixture(scope="module")
def wine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A classifier of wines, trained here and saved as ONNX."""
    data = load_wine()
    mean, scale = data.data.mean(axis=0), data.data.std(axis=0)
    model = LogisticRegression(max_iter=500).fit((data.data - mean) / scale, data.target)
    weights = model.coef_ / scale
    bias = model.intercept_ - weights @ mean
    # What a converter such as skl2onnx does for any model, by hand for this one.
    graph = GraphBuilder(opset=21)
    x = graph.input("features", "float32", ["batch", 13])
    weights_name = graph.constant(weights.T.astype("float32"), "weights")
    logits = graph.node("Gemm", x, weights_name, graph.constant(bias.astype("float32"), "bias"))
    graph.node("Softmax", logits, name="probabilities", axis=1)
    graph.output("probabilities", "float32", ["batch", 3])
    path = tmp_path_factory.mktemp("wine") / "wine.onnx"
    path.write_bytes(graph.build("wine", metadata={}))
    return path


def test_serve_a_model_of_your_own(wine: Path, tmp_path: Path) -> None:
    config = f"""
default_models = false

[[models]]
id = "wine"
kind = "tabular"
backend = "onnx"
description = "Which of three growers made a wine, from its chemistry."
prices = {{ usd_per_request = "0.001" }}
aliases = {{ tried = "1" }}

[[models.versions]]
version = "1"
source = "{wine}"
sha256 = "{hashlib.sha256(wine.read_bytes()).hexdigest()}"
options = {{ labels = ["Barolo", "Grignolino", "Barbera"], output = "probabilities" }}
"""
    row = [float(number) for number in load_wine().data[0]]
    with Server(tmp_path, config=config) as server:
        key = server.credentials["api_key"]
        shown = server.get("/v1/models/wine", key=key)[1]
        assert (shown["status"], shown["num_labels"]) == ("ready", 3)
        body = {"model": "wine@tried", "inputs": [row]}
        status, headers, raw = server.request("POST", "/v1/predict", body=body, key=key)
        assert status == 200, raw
        assert b"Barolo" in raw
        assert Decimal(headers["x-cost-usd"]) == Decimal("0.001")


async def test_a_file_that_was_changed_is_not_served(wine: Path, tmp_path: Path) -> None:
    """The hash in the configuration is checked before the file is loaded; the others go on."""
    config = f"""
default_models = false
models = [
  {{ id = "wine", kind = "tabular", backend = "onnx", source = "{wine}", sha256 = "{"0" * 64}" }},
  {{ id = "sandbox", backend = "sandbox" }},
]
"""
    server = Server(tmp_path, config=config)
    server.start(models=False)
    try:
        key = server.credentials["api_key"]
        await wait_until(lambda: server.get("/v1/models/wine", key=key)[1]["status"] == "failed", "the file is refused")
        shown = server.get("/v1/models/wine", key=key)[1]
        assert "SHA-256" in shown["detail"]
        body = {"model": "sandbox", "messages": [{"role": "user", "content": "hi"}]}
        assert server.request("POST", "/v1/chat/completions", body=body, key=key)[0] == 200
    finally:
        server.stop()
