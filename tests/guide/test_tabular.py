"""Predictions from rows of numbers, and which version of a model makes them."""

from __future__ import annotations

from typing import Any

from tests.guide.conftest import Tour

SETOSA, VIRGINICA = [5.1, 3.5, 1.4, 0.2], [6.7, 3.0, 5.2, 2.3]


def predict(tour: Tour, **body: Any) -> dict[str, Any]:
    answer = tour.http.post("/v1/predict", json={"model": "iris", "inputs": [SETOSA, VIRGINICA], **body})
    assert answer.status_code == 200, answer.text
    content: dict[str, Any] = answer.json()
    return content


def test_predict_many_at_once(tour: Tour) -> None:
    answer = predict(tour)
    assert [row["label"] for row in answer["predictions"]] == ["setosa", "virginica"]
    assert answer["latency_ms"] > 0
    assert answer["request_id"].startswith("req_")


def test_latest_is_the_last_version(tour: Tour) -> None:
    assert predict(tour)["model_version"] == "2"
    assert predict(tour, model_version="latest")["model_version"] == "2"


def test_pin_a_version(tour: Tour) -> None:
    """Beside the model, or in its name where the request has no place for it."""
    assert predict(tour, model_version="1")["model_version"] == "1"
    assert predict(tour, model="iris@1")["model_version"] == "1"


def test_an_alias_is_a_moving_name(tour: Tour) -> None:
    assert predict(tour, model="iris@stable")["model_version"] == "2"
    aliases = tour.http.get("/v1/models/iris").json()["aliases"]
    assert aliases == {"latest": "2", "stable": "2"}


def test_see_the_versions(tour: Tour) -> None:
    versions = tour.http.get("/v1/models/iris/versions").json()["data"]
    assert [(row["id"], row["status"]) for row in versions] == [("1", "ready"), ("2", "ready")]
    assert all(len(row["sha256"]) == 64 for row in versions)


def test_a_version_that_is_not_there_is_named(tour: Tour) -> None:
    answer = tour.http.post("/v1/predict", json={"model": "iris@9", "inputs": [SETOSA]})
    assert answer.status_code == 404
    assert "it has 1, 2" in answer.json()["error"]["message"]


def test_a_row_of_the_wrong_length_is_refused(tour: Tour) -> None:
    answer = tour.http.post("/v1/predict", json={"model": "iris", "inputs": [[1.0, 2.0]]})
    assert answer.status_code == 400
    assert "4" in answer.json()["error"]["message"]
