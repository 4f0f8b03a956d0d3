"""`/v2/predict`: each input has a result of its own; what is wrong with one fails it alone and costs nothing."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Iterator
from typing import Any

import pytest
import skimage.data
from PIL import Image

from tests.rawhttp import Answer
from tests.serving import Server
from tests.waiting import wait_until

SETOSA = [5.1, 3.5, 1.4, 0.2]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with Server(tmp_path_factory.mktemp("each")) as server:
        yield server


@pytest.fixture(scope="module")
def cat(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("cat") / "cat.jpg"
    Image.fromarray(skimage.data.chelsea()).save(path)
    return base64.b64encode(path.read_bytes()).decode()


def ask(server: Server, body: Any, *, path: str = "/v2/predict") -> Answer:
    return Answer(*server.request("POST", path, body=body, key=server.credentials["api_key"]))


def test_good_inputs_are_answered_beside_bad_ones(server: Server) -> None:
    answer = ask(server, {"model": "iris", "inputs": [SETOSA, ["wide"], SETOSA, [1, 2], None]}).json()
    assert [result["status"] for result in answer["results"]] == [
        "succeeded",
        "failed",
        "succeeded",
        "failed",
        "failed",
    ]
    assert [result["index"] for result in answer["results"]] == [0, 1, 2, 3, 4]
    assert answer["results"][0]["prediction"]["label"] == "setosa"
    assert answer["results"][1]["error"]["param"] == "inputs[1]"
    assert answer["results"][1]["error"]["code"] == "invalid_request_error"
    assert answer["counts"] == {"total": 5, "succeeded": 2, "failed": 3}
    assert (answer["model"], answer["model_version"]) == ("iris", "2")


def test_the_same_inputs_give_what_v1_gives(server: Server) -> None:
    inputs = [SETOSA, [6.3, 3.3, 6.0, 2.5]]
    each = ask(server, {"model": "iris", "inputs": inputs}).json()
    at_once = ask(server, {"model": "iris", "inputs": inputs}, path="/v1/predict").json()
    assert [result["prediction"] for result in each["results"]] == at_once["predictions"]


def test_inputs_that_all_fail_are_an_answer_too(server: Server) -> None:
    answer = ask(server, {"model": "iris", "inputs": [["wide"]]})
    assert answer.status == 200
    assert answer.json()["counts"] == {"total": 1, "succeeded": 0, "failed": 1}


def test_what_is_wrong_with_the_call_fails_the_call(server: Server) -> None:
    assert ask(server, {"model": "nobody", "inputs": [SETOSA]}).status == 404
    assert ask(server, {"model": "iris", "inputs": []}).status == 400
    assert ask(server, {"model": "iris", "inputs": [SETOSA], "options": {"nonsense": 1}}).status == 400


async def test_only_pictures_that_were_classified_are_charged(server: Server, cat: str) -> None:
    answer = ask(server, {"model": "efficientnet-lite0", "inputs": [cat, "bm8gcGljdHVyZQ==", cat]})
    assert answer.json()["counts"] == {"total": 3, "succeeded": 2, "failed": 1}
    assert answer.headers["x-cost-usd"] == "0.0002"
    path, key = f"/v1/requests/{answer.headers['x-request-id']}", server.credentials["api_key"]
    await wait_until(lambda: server.get(path, key=key)[0] == 200, "the call is in the books")
    receipt = (await asyncio.to_thread(server.get, path, key=key))[1]
    assert receipt["endpoint"] == "/v2/predict"
    assert receipt["cost_usd"] == "0.0002"
