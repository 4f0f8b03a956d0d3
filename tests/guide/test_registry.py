"""Models that change while the server runs, from the command line."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from openapi_spec_validator import validate

from tests.registry_calls import Operator, iris
from tests.serving import Server
from tests.waiting import wait_until

_CONFIG = """
default_models = false

[[models]]
id = "measured"
kind = "tabular"
backend = "onnx"
source = "prepared:iris-1.onnx"

[models.input_schema]
type = "array"
items = { type = "number", minimum = 0, maximum = 10 }
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with Server(tmp_path_factory.mktemp("registry"), config=_CONFIG) as running:
        yield running


@pytest.fixture
def operator(server: Server) -> Iterator[Operator]:
    with Operator(server) as operator:
        yield operator


def modelport(server: Server, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "modelport.cli", "models", *arguments, "--data-dir", str(server.data_dir)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, env=dict(os.environ))


async def test_add_move_and_roll_back(server: Server, operator: Operator) -> None:
    """A model is added, then its second version, and taken back in one command."""
    done = modelport(server, "add", str(iris("1")), "--id", "wine", "--kind", "tabular")
    assert done.stdout.startswith("wine@1 is ready, SHA-256 "), done.stderr
    assert modelport(server, "add", str(iris("2")), "--id", "wine", "--alias", "latest").returncode == 0
    await wait_until(lambda: operator.served("wine") == "2", "latest leads to 2")
    shown = modelport(server, "alias", "wine", "latest")
    assert shown.stdout == "latest leads to 2 (a rollback leads to 1).\n"
    assert modelport(server, "rollback", "wine").stdout.startswith("latest leads to 1")
    assert operator.served("wine") == "1"
    assert json.loads(modelport(server, "alias", "wine", "stable", "2", "--json").stdout)["version"] == "2"
    assert modelport(server, "deprecate", "wine", "1", "--sunset", "2999-01-01T00:00:00Z").stdout == "wine@1 ends.\n"
    assert "deprecation" in operator.predict("wine").headers
    assert modelport(server, "deprecate", "wine", "1", "--keep").stdout == "wine@1 stays.\n"
    refused = modelport(server, "remove", "wine", "1")
    assert refused.returncode == 1
    assert "latest of 'wine' still means version '1'" in refused.stderr
    assert modelport(server, "remove", "wine").stdout == "wine is out of service.\n"
    assert operator.predict("wine").status_code == 404


def test_what_cannot_be_loaded_is_said(server: Server, tmp_path: Path) -> None:
    bad = tmp_path / "rotten.onnx"
    bad.write_bytes(b"no model")
    done = modelport(server, "add", str(bad), "--kind", "tabular")
    assert done.returncode == 1
    assert "rotten@1 can't be loaded" in done.stderr
    assert modelport(server, "add", str(tmp_path / "nothing.onnx")).returncode == 2
    assert modelport(server, "remove", "rotten").returncode == 0


async def test_a_folder_in_tritons_layout(server: Server, operator: Operator, tmp_path: Path) -> None:
    """Every version in it is added; the last one is what `latest` is to mean."""
    for version in ("1", "2"):
        (tmp_path / "petals" / version).mkdir(parents=True)
        (tmp_path / "petals" / version / "model.onnx").write_bytes(iris(version).read_bytes())
    (tmp_path / "petals" / "config.pbtxt").write_text(
        'platform: "onnxruntime_onnx" max_batch_size: 8 input [{ name: "x" data_type: TYPE_FP32 dims: [4] }]'
    )
    done = modelport(server, "add", str(tmp_path / "petals"), "--alias", "latest", "--json")
    assert done.returncode == 0, done.stderr
    assert [(row["id"], row["options"]) for row in json.loads(done.stdout)] == [
        ("1", {"max_batch": 8}),
        ("2", {"max_batch": 8}),
    ]
    await wait_until(lambda: operator.served("petals") == "2", "latest leads to the last version")


def test_inputs_are_held_to_the_configured_schema(operator: Operator) -> None:
    """It is published, and an input that does not fit is named with its path."""
    told = operator.http.get("/v1/models/measured").json()
    assert told["input_schema"]["items"]["maximum"] == 10
    assert told["output_schema"]["required"] == ["label", "index", "probabilities"]
    assert operator.predict("measured").status_code == 200
    rows = [[1, 2, 3, 4], [1, 2, 30, 4]]
    answer = operator.http.post("/v1/predict", json={"model": "measured", "inputs": rows})
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == "inputs[1][2]"
    assert "greater than the maximum of 10" in answer.json()["error"]["message"]


def test_the_openapi_document_has_the_schemas_of_the_models_that_a_key_may_call(operator: Operator) -> None:
    """Without a key it has none: names of models are nobody's business but their callers'."""
    general = httpx.get(f"{operator.server.base_url}/openapi.json").json()
    assert "measured" not in json.dumps(general["paths"]["/v1/predict"])
    told = operator.http.get("/openapi.json").json()
    assert validate(told) is None
    body = told["paths"]["/v1/predict"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    name = body["discriminator"]["mapping"]["measured"].rsplit("/", 1)[1]
    inputs = told["components"]["schemas"][name]["allOf"][1]["properties"]["inputs"]
    assert inputs["items"]["items"]["maximum"] == 10
    made = operator.http.post("/v1/api_keys", json={"name": "other", "models": ["other"]}).json()
    with Operator(operator.server, key=made["key"]) as mallory:
        assert "measured" not in json.dumps(mallory.http.get("/openapi.json").json()["paths"]["/v1/predict"])
