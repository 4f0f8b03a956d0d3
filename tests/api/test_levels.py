"""`/v1/metrics` and `/v1/admin/slo` tell what real calls came to, over all workers, and only to operators."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import pytest

from tests.serving import Server
from tests.waiting import wait_until

CONFIG = """
default_models = false
[slo]
interval_s = 0.2
[[models]]
id = "iris"
kind = "tabular"
backend = "onnx"
source = "prepared:iris-2.onnx"
[[models]]
id = "sandbox"
backend = "sandbox"
cache = { ttl_s = 60 }
"""
LAG = "modelport_event_loop_lag_seconds"
GOOD, WRONG = {"model": "iris", "inputs": [[5.1, 3.5, 1.4, 0.2]]}, {"model": "iris", "inputs": [["x"]]}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with Server(tmp_path_factory.mktemp("levels"), config=CONFIG, workers=2) as started:
        await_both_workers(started)
        yield started


def await_both_workers(server: Server) -> None:
    """Return when so many answers in a row say that all models are loaded that both workers must have said so."""
    in_a_row, give_up_s = 0, time.monotonic() + 60
    while in_a_row < 30:
        assert time.monotonic() < give_up_s, "a worker's models are not loaded"
        models = server.get("/health")[1]["models"].values()
        in_a_row = in_a_row + 1 if all(model["status"] == "ok" for model in models) else 0


def chat(text: str) -> dict[str, Any]:
    return {"model": "sandbox", "temperature": 0, "messages": [{"role": "user", "content": text}]}


async def test_the_summary_and_the_promises_tell_of_the_calls_of_all_workers(server: Server) -> None:
    key = server.credentials["api_key"]
    for body, status in ((GOOD, 200), (GOOD, 200), (WRONG, 400)):
        for _ in range(4):
            assert server.request("POST", "/v1/predict", body=body, key=key)[0] == status
    for text in ("[[tokens:1]]", "[[tokens:1]]", "[[error:500]]"):
        server.request("POST", "/v1/chat/completions", body=chat(text), key=key)

    def summary(window: str = "5m") -> Any:
        return server.get(f"/v1/metrics?window={window}", key=key)[1]

    await wait_until(lambda: summary()["calls"] == 15, "all calls are in the summary")
    for window in ("5m", "1h", "30d"):
        found = summary(window)
        iris, sandbox = found["models"]
        assert (iris["model"], iris["calls"], iris["error_rate"]) == ("iris", 12, 0.0)
        assert iris["versions"] == [{"version": "1", "calls": 12, "share": 1.0}]
        assert 0 < iris["latency_ms"]["p50"] <= iris["latency_ms"]["p95"] <= iris["latency_ms"]["p99"]
        assert sandbox["calls"] == 3
        assert sandbox["error_rate"] == pytest.approx(1 / 3, abs=1e-6)
        assert found["cache"]["hits"] + found["cache"]["misses"] >= 2
        latency = [row for row in found["slos"] if row["objective"] == "latency"]
        assert [(row["model"], row["endpoint"], row["windows"][0]["total"]) for row in latency] == [
            ("iris", "/v1/predict", 8)
        ]


async def test_a_promise_that_is_broken_is_told_and_shown_to_prometheus(server: Server) -> None:
    key = server.credentials["api_key"]
    for _ in range(3):
        server.request("POST", "/v1/chat/completions", body=chat("[[error:503]]"), key=key)

    def burning() -> Any:
        return server.get("/v1/admin/slo?status=burning", key=key)[1]["data"]

    await wait_until(lambda: len(burning()) == 2, "errors and availability burn")
    for row in burning():
        assert (row["model"], row["status"]) == ("sandbox", "burning")
        assert [level["window"] for level in row["windows"]] == ["5m", "1h", "30d"]
        assert all(level["burn_rate"] > 14.4 and level["met"] is False for level in row["windows"])
    (uptime,) = [r for r in server.get("/v1/admin/slo", key=key)[1]["data"] if r["objective"] == "uptime"]
    assert (uptime["model"], uptime["status"]) == (None, "met")
    assert server.get("/v1/admin/slo?model=iris&status=burning", key=key)[1]["data"] == []
    assert b"modelport_slo_burn_rate" in server.request("GET", "/metrics")[2]


@pytest.mark.parametrize("path", ["/v1/metrics?window=1y", "/v1/metrics?window=", "/v1/admin/slo?status=good"])
def test_a_window_or_status_that_there_is_not_is_refused(server: Server, path: str) -> None:
    status, body = server.get(path, key=server.credentials["api_key"])
    assert (status, body["error"]["param"]) == (400, path.partition("?")[2].partition("=")[0])


async def test_the_workers_tell_how_late_their_loops_are(server: Server) -> None:
    def samples() -> float:
        text = server.request("GET", "/metrics")[2].decode()
        return sum(float(line.split()[-1]) for line in text.splitlines() if line.startswith(f"{LAG}_count"))

    await wait_until(lambda: samples() > 10, "both have been asked some times")
