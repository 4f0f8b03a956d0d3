"""Budgets: money that calls may spend, kept to the billionth of a dollar; what is left is in every answer."""

from __future__ import annotations

from collections.abc import Iterator
from decimal import Decimal
from typing import Any

import httpx
import openai
import pytest
from openai import OpenAI

from tests.budget_calls import CONFIG
from tests.serving import Server

QUESTION: list[Any] = [{"role": "user", "content": "[[tokens:50]]"}]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A platform whose sandbox costs something: $1 and $2 for a million tokens in and out."""
    with Server(tmp_path_factory.mktemp("budgets"), config=CONFIG) as server:
        yield server


@pytest.fixture
def http(server: Server) -> Iterator[httpx.Client]:
    headers = {"Authorization": f"Bearer {server.credentials['api_key']}"}
    with httpx.Client(base_url=server.base_url, headers=headers, timeout=60) as http:
        yield http


def limited(server: Server, http: httpx.Client, **limits: str) -> tuple[OpenAI, str]:
    """The SDK with a key of its own, and the id of that key's budget for this month."""
    key = http.post("/v1/api_keys", json={"name": "intern"}).json()
    made = http.post("/v1/budgets", json={"scope": "key", "target": key["id"], "period": "month", **limits}).json()
    return OpenAI(base_url=f"{server.base_url}/v1", api_key=key["key"], max_retries=0), made["id"]


def test_a_hard_limit_is_spent_and_then_refuses(server: Server, http: httpx.Client) -> None:
    sdk, budget_id = limited(server, http, hard_limit_usd="0.0005")
    left = "0.0005"
    with sdk:
        # The last of these is cut short, and takes what is left.
        while Decimal(left) > Decimal("0.000020"):
            answer = sdk.chat.completions.with_raw_response.create(model="sandbox", messages=QUESTION, max_tokens=50)
            left = answer.headers["x-budget-remaining-usd"]
        with pytest.raises(openai.RateLimitError) as refused:
            sdk.chat.completions.create(model="sandbox", messages=QUESTION, max_tokens=50)
    assert refused.value.code == "insufficient_quota"
    assert refused.value.response.headers["x-should-retry"] == "false"
    standing = http.get(f"/v1/budgets/{budget_id}").json()
    assert Decimal(standing["spent_usd"]) == Decimal("0.0005") - Decimal(left)
    assert Decimal("0.00048") < Decimal(standing["spent_usd"]) <= Decimal("0.0005")


def test_the_last_answer_is_as_long_as_the_money_lasts(server: Server, http: httpx.Client) -> None:
    sdk, _ = limited(server, http, hard_limit_usd="0.00005")
    with sdk:
        answer = sdk.chat.completions.create(model="sandbox", messages=QUESTION, max_tokens=50)
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage is not None
    assert 0 < answer.usage.completion_tokens < 25


def test_raising_a_limit_lets_the_next_call_through(server: Server, http: httpx.Client) -> None:
    sdk, budget_id = limited(server, http, hard_limit_usd="0")
    with sdk:
        with pytest.raises(openai.RateLimitError):
            sdk.chat.completions.create(model="sandbox", messages=QUESTION)
        http.patch(f"/v1/budgets/{budget_id}", json={"hard_limit_usd": "1.00"})
        assert sdk.chat.completions.create(model="sandbox", messages=QUESTION, max_tokens=50).usage is not None


def test_a_soft_limit_refuses_nobody(server: Server, http: httpx.Client) -> None:
    sdk, budget_id = limited(server, http, soft_limit_usd="0.00001")
    with sdk:
        for _ in range(3):
            sdk.chat.completions.create(model="sandbox", messages=QUESTION, max_tokens=50)
    standing = http.get(f"/v1/budgets/{budget_id}").json()
    assert Decimal(standing["spent_usd"]) > Decimal(standing["soft_limit_usd"])


def test_what_is_left_of_everything(http: httpx.Client) -> None:
    http.post("/v1/budgets", json={"scope": "tag", "target": "feature=chat", "period": "day", "hard_limit_usd": "9"})
    left = http.get("/v1/limits").json()
    assert {limit["name"] for limit in left["limits"]} <= {"rpm", "tpm", "calls", "key-rpm", "key-tpm", "key-calls"}
    (budget,) = [one for one in left["budgets"] if one["target"] == "feature=chat"]
    assert (budget["scope"], budget["remaining_usd"]) == ("tag", "9.00")
