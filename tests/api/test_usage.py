"""Usage and receipts over HTTP: what was just called is there, exact, and only one's own."""

from __future__ import annotations

import json
from collections.abc import Iterator
from decimal import Decimal
from typing import Any

import pytest

from tests.serving import Server

CONFIG = """
default_models = false
[[models]]
id = "sandbox"
backend = "sandbox"
prices = { input_usd_per_mtok = "3.00", output_usd_per_mtok = "15.00", usd_per_request = "0.000001" }
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with Server(tmp_path_factory.mktemp("usage"), config=CONFIG, workers=2) as server:
        yield server


def chat(server: Server, text: str, *, feature: str) -> tuple[str, dict[str, Any]]:
    """One call: its id and the usage that the client saw."""
    status, headers, body = server.request(
        "POST",
        "/v1/chat/completions",
        key=server.credentials["api_key"],
        body={
            "model": "sandbox",
            "messages": [{"role": "user", "content": text}],
            "max_tokens": 20,
            "metadata": {"feature": feature},
        },
    )
    assert status == 200, body
    usage: dict[str, Any] = json.loads(body)["usage"]
    return headers["x-request-id"], usage


def get(server: Server, path: str) -> tuple[int, Any]:
    return server.get(path, key=server.credentials["api_key"])


def test_a_report_equals_what_clients_saw_right_after_they_saw_it(server: Server) -> None:
    seen = [chat(server, f"hello number {number}", feature="equal")[1] for number in range(8)]
    status, body = get(server, "/v1/usage?group_by=feature,model&bucket=month")
    assert status == 200
    (row,) = [row for row in body["data"] if row["group"]["feature"] == "equal"]
    assert row["calls"] == row["succeeded"] == 8
    assert row["input_tokens"] == sum(usage["prompt_tokens"] for usage in seen)
    assert row["output_tokens"] == sum(usage["completion_tokens"] for usage in seen)
    dollars = Decimal(3 * row["input_tokens"] + 15 * row["output_tokens"]) / 1_000_000 + Decimal("0.000001") * 8
    assert Decimal(row["cost_usd"]) == dollars
    assert row["latency_ms"]["p50"] <= row["latency_ms"]["p99"]


def test_a_receipt_adds_up_to_the_cost_that_the_answer_told(server: Server) -> None:
    call_id, usage = chat(server, "what do you cost?", feature="receipt")
    status, body = get(server, f"/v1/requests/{call_id}")
    assert status == 200
    assert (body["id"], body["status"], body["model"], body["metadata"]) == (
        call_id,
        200,
        "sandbox",
        {"feature": "receipt"},
    )
    assert body["input_tokens"] == usage["prompt_tokens"]
    assert sum(Decimal(line["amount_usd"]) for line in body["lines"]) == Decimal(body["cost_usd"]) > 0
    assert [line["item"] for line in body["lines"]] == ["input_tokens", "output_tokens", "request"]
    assert len(body["attempts"]) == 1


def test_nobody_elses_receipt_and_no_made_up_one(server: Server) -> None:
    status, body = get(server, "/v1/requests/req_00000000000000000000000000000000")
    assert (status, body["error"]["code"]) == (404, "not_found")


@pytest.mark.parametrize(
    ("query", "param"),
    [
        ("start=yesterday", "start"),
        ("end=2026-13-01", "end"),
        ("start=99999999999999999999", "start"),
        ("start=2026-02-01&end=2026-01-01", "start"),
        ("bucket=week", "bucket"),
        ("group_by=a%20b", "group_by"),
        ("group_by=a,b,c,d,e,f,g", "group_by"),
        ("start=1970-01-01&bucket=month", "start"),
    ],
)
def test_a_wrong_question_names_the_parameter(server: Server, query: str, param: str) -> None:
    status, body = get(server, f"/v1/usage?{query}")
    assert (status, body["error"]["param"]) == (400, param)


@pytest.mark.parametrize(
    "query",
    [
        "start=2026-01-01",
        "start=2026-01-01T00:00:00Z&end=2126-01-01T00:00:00%2B02:00",
        "start=2026-01-01T00:00:00+02:00",
        "start=1767225600&bucket=day",
        "model=sandbox&mode=live&group_by=key,status",
    ],
)
def test_times_are_understood_as_people_write_them(server: Server, query: str) -> None:
    chat(server, "hi", feature="times")
    status, body = get(server, f"/v1/usage?{query}")
    assert status == 200
    assert body["totals"]["calls"] > 0


def test_usage_is_for_those_who_may_read_it(server: Server) -> None:
    status, body = server.get("/v1/usage")
    assert (status, body["error"]["code"]) == (401, "invalid_api_key")
