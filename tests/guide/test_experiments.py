"""Experiments: calls split over versions, what came of each, and the winner promoted."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tests.problems import check
from tests.rawhttp import Answer
from tests.registry_calls import ROW
from tests.serving import Server
from tests.waiting import wait_until

_CONFIG = """
default_models = false

[limits]
management_per_minute = 100000

[[models]]
id = "iris"
kind = "tabular"
backend = "onnx"
versions = [
    { version = "1", source = "prepared:iris-1.onnx" },
    { version = "2", source = "prepared:iris-2.onnx" },
]
aliases = { latest = "1" }

[[models]]
id = "other"
kind = "tabular"
backend = "onnx"
source = "prepared:iris-2.onnx"
prices = { usd_per_request = "0.01" }

[[models]]
id = "sandbox"
backend = "sandbox"
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with Server(tmp_path_factory.mktemp("experiments"), config=_CONFIG, workers=2) as running:
        yield running


@pytest.fixture
def http(server: Server) -> Iterator[httpx.Client]:
    with client(server, server.credentials["api_key"]) as http:
        yield http
        for one in http.get("/v1/experiments").json()["data"]:
            if one["status"] != "stopped":
                http.patch(f"/v1/experiments/{one['id']}", json={"status": "stopped"})


def client(server: Server, key: str) -> httpx.Client:
    return httpx.Client(base_url=server.base_url, headers={"Authorization": f"Bearer {key}"}, timeout=60)


def start(http: httpx.Client, *, weights: tuple[int, int] = (1, 1), **more: Any) -> dict[str, Any]:
    body = {
        "name": "second iris",
        "model": "iris",
        "variants": [
            {"name": "now", "model": "iris@1", "weight": weights[0]},
            {"name": "next", "model": "iris@2", "weight": weights[1]},
        ],
        **more,
    }
    answer = http.post("/v1/experiments", json=body)
    assert answer.status_code == 201, answer.text
    made: dict[str, Any] = answer.json()
    return made


def predict(http: httpx.Client, user: str = "", model: str = "iris") -> httpx.Response:
    metadata = {"metadata": {"user": user}} if user else {}
    answer = http.post("/v1/predict", json={"model": model, "inputs": [ROW], **metadata})
    assert answer.status_code == 200, answer.text
    return answer


def variant(answer: httpx.Response) -> str:
    return answer.headers.get("x-experiment", "=").partition("=")[2]


def until_both_know(server: Server) -> None:
    """Return when each of many calls on connections of their own is in the experiment."""
    known = lambda: all(on_a_new_connection(server, server.credentials["api_key"]) for _ in range(8))  # noqa: E731
    asyncio.run(wait_until(known, "both workers know of the experiment"))


def on_a_new_connection(server: Server, key: str) -> str:
    """Which variant a call gets by whichever worker takes it."""
    with client(server, key) as http:
        return variant(predict(http, "somebody"))


def test_users_keep_their_variant_and_results_tell_them_apart(server: Server, http: httpx.Client) -> None:
    """The answer, its record and the results agree on the variant, whichever worker answers."""
    made = start(http, sticky="tag:user", metric="feedback")
    until_both_know(server)
    http.patch(f"/v1/experiments/{made['id']}", json={"weights": {"now": 2, "next": 2}})
    got: dict[str, set[str]] = {}
    for number in range(60):
        answer = predict(http, f"user-{number % 30}")
        assert answer.json()["model_version"] == {"now": "1", "next": "2"}[variant(answer)]
        got.setdefault(f"user-{number % 30}", set()).add(variant(answer))
        told = {"request_id": answer.headers["x-request-id"], "score": variant(answer) == "next"}
        assert [http.post("/v1/feedback", json=told).status_code for _ in range(2)] == [200, 200]
    assert all(len(variants) == 1 for variants in got.values())
    results = http.get(f"/v1/experiments/{made['id']}/results").json()
    now, following = results["variants"]
    assert now["calls"] + following["calls"] == 60
    assert (now["units"] + following["units"], results["winner"]) == (30, None)
    assert "needs 100 units (tag:user)" in results["reason"]
    assert (now["feedback"]["mean"], following["feedback"]["mean"]) == (0.0, 1.0)
    assert now["latency_quantiles_ms"]["p50"] > 0
    assert results["sample_ratio_p_value"] > 0.001


def test_a_sure_winner_is_told_and_promoted(server: Server, http: httpx.Client) -> None:
    """Feedback that is clearly better wins, and `latest` leads to its version."""
    made = start(http, sticky="call", metric="feedback")
    until_both_know(server)
    for _ in range(300):
        answer = predict(http)
        told = {"request_id": answer.headers["x-request-id"], "score": 0.9 if variant(answer) == "next" else 0.2}
        assert http.post("/v1/feedback", json=told).status_code == 200
    results = http.get(f"/v1/experiments/{made['id']}/results").json()
    assert results["winner"] == "next", results
    assert results["variants"][1]["comparison"]["low"] > 0.2
    promoted = http.post(f"/v1/experiments/{made['id']}/promote", json={})
    assert (promoted.status_code, promoted.json()["status"]) == (200, "stopped")
    assert http.get("/v1/admin/models/iris").json()["aliases"][0]["version"] == "2"


def test_who_names_a_version_is_in_no_experiment(http: httpx.Client) -> None:
    start(http)
    assert "x-experiment" not in predict(http, model="iris@1").headers
    assert "x-experiment" not in predict(http, model="iris@latest").headers


def test_a_key_gets_no_variant_that_is_closed_to_it(server: Server, http: httpx.Client) -> None:
    """A model that a key may not use stays closed to it, also as a variant."""
    start(http, variants=[{"name": "a", "model": "other"}, {"name": "b", "model": "iris", "weight": 0}])
    assert variant(predict(http)) in ("a", "")
    bound = http.post("/v1/api_keys", json={"name": "bound", "models": ["iris"]}).json()["key"]
    with client(server, bound) as narrow:
        answer = predict(narrow)
        assert ("x-experiment" in answer.headers, answer.json()["model"]) == (False, "iris")


@pytest.mark.parametrize(
    ("more", "status", "code"),
    [
        ({"model": "iris@1"}, 400, "invalid_request_error"),
        ({"model": "nowhere"}, 404, "model_not_found"),
        ({"variants": [{"name": "a", "model": "iris"}, {"name": "b", "model": "iris@9"}]}, 404, "model_not_found"),
        (
            {"variants": [{"name": "a", "model": "iris"}, {"name": "a", "model": "iris@2"}]},
            400,
            "invalid_request_error",
        ),
        ({"variants": [{"name": n, "model": "iris", "weight": 0} for n in "ab"]}, 400, "invalid_request_error"),
        (
            {"variants": [{"name": "a\n", "model": "iris"}, {"name": "b", "model": "iris"}]},
            400,
            "invalid_request_error",
        ),
        ({"sticky": "tag:"}, 400, "invalid_request_error"),
        ({"alpha": 1}, 400, "invalid_request_error"),
    ],
)
def test_what_can_not_be_an_experiment_is_refused(
    http: httpx.Client, more: dict[str, Any], status: int, code: str
) -> None:
    body = {"name": "x", "model": "iris", "variants": [{"name": n, "model": "iris"} for n in "ab"], **more}
    answer = http.post("/v1/experiments", json=body)
    check(Answer(answer.status_code, dict(answer.headers), answer.content), status, code)


def test_one_experiment_of_a_model_at_a_time(http: httpx.Client) -> None:
    """A second one is refused until the first is stopped, which is for good."""
    made = start(http)
    second = http.post("/v1/experiments", json={k: made[k] for k in ("name", "model", "variants")})
    assert second.status_code == 409
    path = f"/v1/experiments/{made['id']}"
    assert http.patch(path, json={"status": "paused"}).json()["status"] == "paused"
    assert http.patch(path, json={"status": "stopped"}).json()["status"] == "stopped"
    assert http.patch(path, json={"status": "running"}).status_code == 409
    start(http)


def test_feedback_on_what_is_no_call_of_ones_own(http: httpx.Client) -> None:
    for score in (2, -0.1, "NaN"):
        assert http.post("/v1/feedback", json={"request_id": "req_x", "score": score}).status_code == 400
    assert http.post("/v1/feedback", json={"request_id": "req_x", "score": 1}).status_code == 404


def test_an_experiment_outlives_kill_9(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Callers keep their variant after the server was killed and started again."""
    server = Server(tmp_path_factory.mktemp("killed"), config=_CONFIG)
    server.start()
    key = server.credentials["api_key"]
    with client(server, key) as http:
        start(http, sticky="tag:user")
    before = on_a_new_connection(server, key)
    server.kill()
    server.start()
    try:
        assert on_a_new_connection(server, key) == before != ""
    finally:
        server.kill()
