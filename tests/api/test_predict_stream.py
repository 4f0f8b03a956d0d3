"""`/v1/predict/stream`: events until the result; no stream ends without `result` or `error`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from tests.rawhttp import Answer
from tests.serving import Server

SETOSA = [5.1, 3.5, 1.4, 0.2]
CONFIG = """
[[models]]
id = "picture"
kind = "image"
backend = "sandbox"
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with Server(tmp_path_factory.mktemp("stream"), config=CONFIG) as server:
        yield server


def ask(server: Server, body: Any, *, key: str = "") -> Answer:
    key = key or server.credentials["api_key"]
    return Answer(*server.request("POST", "/v1/predict/stream", body=body, key=key))


def events(answer: Answer) -> list[tuple[str, Any]]:
    blocks = answer.body.decode().split("\n\n")
    assert blocks.pop() == ""
    lines = [block.split("\n") for block in blocks]
    return [(name.removeprefix("event: "), json.loads(data.removeprefix("data: "))) for name, data in lines]


def test_the_result_is_that_of_a_plain_prediction(server: Server) -> None:
    body = {"model": "iris", "inputs": [SETOSA]}
    told = events(ask(server, body))
    assert [name for name, _ in told] == ["queued", "result"]
    plain = Answer(*server.request("POST", "/v1/predict", body=body, key=server.credentials["api_key"])).json()
    result = told[-1][1]
    assert result["predictions"] == plain["predictions"]
    assert result.keys() - {"cost_usd"} == plain.keys()
    assert result["prediction_id"] == told[0][1]["prediction_id"]


def test_a_slow_model_is_told_of_every_second(server: Server) -> None:
    slow = {"model": "picture", "inputs": ["x"], "metadata": {"sandbox": "[[latency:2500ms]]"}}
    told = events(ask(server, slow))
    assert [name for name, _ in told] == ["queued", "progress", "progress", "result"]
    assert told[1][1]["elapsed_ms"] < told[2][1]["elapsed_ms"]


def test_a_failure_after_the_first_event_is_the_last_event(server: Server) -> None:
    failing = {"model": "picture", "inputs": ["x"], "metadata": {"sandbox": "[[latency:200ms]][[error:500]]"}}
    told = events(ask(server, failing))
    assert [name for name, _ in told] == ["queued", "error"]
    assert told[-1][1]["error"]["code"] == "internal_error"


def test_what_is_wrong_with_the_request_is_an_ordinary_answer(server: Server) -> None:
    assert ask(server, {"model": "nobody", "inputs": [SETOSA]}).status == 404
    assert ask(server, {"model": "iris", "inputs": []}).status == 400
    assert ask(server, {"model": "iris", "inputs": [SETOSA]}, key="nonsense").status == 401
