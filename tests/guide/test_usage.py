"""Usage: what was called, by whom and for what, and what it cost, to the last digit."""

from __future__ import annotations

from decimal import Decimal

import pytest
from openai import OpenAI

from tests.guide.conftest import Tour


@pytest.fixture
def sdk(tour: Tour) -> OpenAI:
    """The SDK with a key that nobody else uses, so that its usage is ours."""
    key = tour.http.post("/v1/api_keys", json={"name": "usage", "scopes": ["inference", "usage:read"]}).json()["key"]
    return tour.sdk_with(key)


def test_a_receipt_for_each_call(tour: Tour, sdk: OpenAI) -> None:
    raw = sdk.chat.completions.with_raw_response.create(
        model="sandbox", messages=[{"role": "user", "content": "[[tokens:20]]"}], metadata={"feature": "search"}
    )
    usage = raw.parse().usage
    assert usage is not None
    receipt = tour.http.get(f"/v1/requests/{raw.headers['x-request-id']}").json()
    assert receipt["input_tokens"] == usage.prompt_tokens
    assert receipt["output_tokens"] == usage.completion_tokens == 20
    assert receipt["metadata"] == {"feature": "search"}
    assert Decimal(receipt["cost_usd"]) == Decimal(raw.headers["x-cost-usd"])
    assert Decimal(receipt["cost_usd"]) == sum(Decimal(line["amount_usd"]) for line in receipt["lines"])


def test_totals_by_model(tour: Tour, sdk: OpenAI) -> None:
    for _ in range(3):
        sdk.chat.completions.create(model="sandbox", messages=[{"role": "user", "content": "[[tokens:4]]"}])
    created = tour.http.get("/v1/api_keys").json()["data"][0]
    report = tour.http.get("/v1/usage", params={"key": created["id"], "group_by": "model"}).json()
    (row,) = report["data"]
    assert row["group"] == {"model": "sandbox"}
    assert (row["calls"], row["succeeded"], row["output_tokens"]) == (3, 3, 12)
    assert row["latency_ms"]["p50"] is not None
    assert report["totals"]["cost_usd"] == row["cost_usd"]


def test_totals_by_what_you_tag(tour: Tour, sdk: OpenAI) -> None:
    """`metadata` on a call is what its cost is attributed to."""
    for customer, words in (("acme", 4), ("acme", 6), ("globex", 1)):
        sdk.chat.completions.create(
            model="sandbox",
            messages=[{"role": "user", "content": f"[[tokens:{words}]]"}],
            metadata={"tour_customer": customer},
        )
    report = tour.http.get("/v1/usage", params={"group_by": "tour_customer"}).json()
    tokens = {row["group"]["tour_customer"]: row["output_tokens"] for row in report["data"]}
    assert tokens["acme"] == 10
    assert tokens["globex"] == 1


def test_usage_by_the_hour(tour: Tour, sdk: OpenAI) -> None:
    sdk.chat.completions.create(model="sandbox", messages=[{"role": "user", "content": "hello"}])
    report = tour.http.get("/v1/usage", params={"bucket": "hour"}).json()
    assert report["data"][-1]["start"].endswith(":00:00Z")
    assert sum(row["calls"] for row in report["data"]) == report["totals"]["calls"]


def test_a_failed_call_is_counted_and_free(tour: Tour, sdk: OpenAI) -> None:
    answer = tour.http.post(
        "/v1/chat/completions",
        json={"model": "sandbox", "messages": [{"role": "user", "content": "[[error:503]]"}]},
    )
    assert answer.status_code == 503
    receipt = tour.http.get(f"/v1/requests/{answer.headers['x-request-id']}").json()
    assert (receipt["status"], receipt["error_code"]) == (503, "overloaded")
    assert Decimal(receipt["cost_usd"]) == 0
