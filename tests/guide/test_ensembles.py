"""Ensembles: several models that answer as one, at one price, also while some of them fail."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.rawhttp import Answer
from tests.serving import Server

SETOSA = [5.1, 3.5, 1.4, 0.2]
FLAKY = """
import os

class Flaky:
    def predict(self, inputs: list[float]) -> list[float]:
        if -1 in inputs:
            raise RuntimeError("no")
        return [value * 2 for value in inputs]
"""
STEADY = """
class Steady:
    def predict(self, inputs: list[float]) -> list[float]:
        return [value * 4 for value in inputs]
"""
CONFIG = """
[[models]]
id = "both"
kind = "tabular"
backend = "ensemble"
options = {{ members = ["iris@1", "iris@2"], combine = "mean" }}
prices = {{ usd_per_request = "0.002" }}

[[models]]
id = "voters"
kind = "tabular"
backend = "ensemble"
options = {{ members = ["iris@1", "iris@2", "iris@latest"], combine = "vote" }}

[[models]]
id = "pictures"
kind = "image"
backend = "ensemble"
options = {{ members = ["efficientnet-lite0", "efficientnet-lite0@1"], combine = "mean" }}

[[models]]
id = "flaky"
kind = "custom"
backend = "python"
source = "{flaky}"
[[models]]
id = "steady"
kind = "custom"
backend = "python"
source = "{steady}"
[[models]]
id = "strict"
kind = "custom"
backend = "ensemble"
options = {{ members = ["flaky", "steady"], combine = "mean" }}
[[models]]
id = "lenient"
kind = "custom"
backend = "ensemble"
options = {{ members = ["flaky", "steady"], combine = "weighted_mean", weights = [3, 1], require = 1 }}
[[models]]
id = "whoever"
kind = "chat"
backend = "ensemble"
options = {{ members = ["sandbox", "smollm2-135m-instruct"], combine = "first_success" }}
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder: Path = tmp_path_factory.mktemp("ensembles")
    (folder / "flaky.py").write_text(FLAKY)
    (folder / "steady.py").write_text(STEADY)
    config = CONFIG.format(flaky=folder / "flaky.py", steady=folder / "steady.py")
    with Server(folder, config=config) as server:
        yield server


def ask(server: Server, model: str, *inputs: Any, path: str = "/v1/predict", **options: Any) -> Answer:
    body = {"model": model, "inputs": list(inputs), "options": options}
    return Answer(*server.request("POST", path, body=body, key=server.credentials["api_key"]))


def test_probabilities_are_the_mean_of_both_versions(server: Server) -> None:
    one, two, both = (ask(server, name, SETOSA).json()["predictions"][0] for name in ("iris@1", "iris@2", "both"))
    for label, probability in both["probabilities"].items():
        assert probability == pytest.approx((one["probabilities"][label] + two["probabilities"][label]) / 2)
    assert both["label"] == "setosa"


def test_it_is_one_call_at_one_price(server: Server) -> None:
    answer = ask(server, "both", SETOSA)
    assert answer.headers["x-cost-usd"] == "0.002"
    assert answer.headers["x-model-served"] == "both"


def test_votes_are_counted(server: Server) -> None:
    answer = ask(server, "voters", SETOSA).json()
    assert answer["predictions"] == [{"label": "setosa", "index": 0, "confidence": 1.0}]


def test_wrong_inputs_are_told_as_a_member_would(server: Server) -> None:
    answer = ask(server, "both", SETOSA, ["wide"])
    assert (answer.status, answer.json()["error"]["param"]) == (400, "inputs[1]")
    each = ask(server, "both", SETOSA, ["wide"], path="/v2/predict").json()
    assert each["counts"] == {"total": 2, "succeeded": 1, "failed": 1}


def test_members_may_fail_where_that_is_allowed(server: Server) -> None:
    assert ask(server, "strict", 1.0).json()["predictions"] == [3.0]
    assert ask(server, "lenient", 1.0).json()["predictions"] == [2.5]
    assert ask(server, "strict", -1.0).status == 502
    assert ask(server, "lenient", -1.0).json()["predictions"] == [-4.0]


def test_whoever_begins_first_answers_a_chat(server: Server) -> None:
    body = {"model": "whoever", "messages": [{"role": "user", "content": "[[tokens:2]]"}], "stream": True}
    answer = Answer(*server.request("POST", "/v1/chat/completions", body=body, key=server.credentials["api_key"]))
    assert answer.status == 200
    assert answer.body.endswith(b"data: [DONE]\n\n")


def test_the_model_names_its_members(server: Server) -> None:
    shown = server.get("/v1/models/both", key=server.credentials["api_key"])[1]
    assert (shown["status"], shown["num_labels"]) == ("ready", 3)
