"""Prices: a row of configuration for each model; a new price counts from now on, and never backwards."""

from __future__ import annotations

import json
from decimal import Decimal
from pathlib import Path

from tests.guide.conftest import Tour
from tests.serving import Server


def configuration(input_usd: str, output_usd: str) -> str:
    return f"""
default_models = false

[[models]]
id = "sandbox"
backend = "sandbox"
prices = {{ input_usd_per_mtok = "{input_usd}", output_usd_per_mtok = "{output_usd}" }}
"""


def call(server: Server) -> tuple[str, Decimal]:
    """A call of 1,000 output tokens: its id and what it cost."""
    body = {"model": "sandbox", "messages": [{"role": "user", "content": "[[tokens:1000]]"}]}
    status, headers, raw = server.request("POST", "/v1/chat/completions", body=body, key=server.credentials["api_key"])
    assert status == 200
    assert json.loads(raw)["usage"]["completion_tokens"] == 1000
    return headers["x-request-id"], Decimal(headers["x-cost-usd"])


def receipt(server: Server, call_id: str) -> Decimal:
    return Decimal(server.get(f"/v1/requests/{call_id}", key=server.credentials["api_key"])[1]["cost_usd"])


def test_a_price_change_leaves_old_calls_their_price(tmp_path: Path) -> None:
    server = Server(tmp_path, config=configuration("0", "2.00"))
    with server:
        old_call, old_cost = call(server)
        assert old_cost == Decimal("0.002")
    (tmp_path / "modelport.toml").write_text(configuration("0", "5.00"))
    with server:
        new_call, new_cost = call(server)
        assert new_cost == Decimal("0.005")
        assert receipt(server, old_call) == old_cost
        assert receipt(server, new_call) == new_cost
        totals = server.get("/v1/usage", key=server.credentials["api_key"])[1]["totals"]
        assert Decimal(totals["cost_usd"]) == old_cost + new_cost


def test_the_prices_of_a_model_can_be_asked_for(tour: Tour) -> None:
    prices = tour.http.get("/v1/models/sandbox").json()["prices"]
    assert Decimal(prices["input_usd_per_mtok"]) == Decimal("0.10")
    assert Decimal(prices["output_usd_per_mtok"]) == Decimal("0.40")
