"""What the tests of budgets do through the front door: a key, a budget, a call, and what they all come to."""

from __future__ import annotations

import json
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from tests.rawhttp import Answer
from tests.serving import Server

# A thousand nano-dollars for a token of input, two thousand for one of output.
CONFIG = """
default_models = false
[limits]
management_per_minute = 100000
[[models]]
id = "sandbox"
backend = "sandbox"
prices = { input_usd_per_mtok = "1", output_usd_per_mtok = "2" }
[[models]]
id = "picture"
kind = "image"
backend = "sandbox"
prices = { usd_per_request = "0.001", usd_per_image = "0.002" }
"""
INPUT_USD, OUTPUT_USD = Decimal("0.000001"), Decimal("0.000002")


@dataclass(frozen=True)
class Key:
    id: str
    secret: str


def new_key(server: Server, **options: Any) -> Key:
    """A new key of the demo organization, which no worker has seen yet."""
    body = Answer(*_ask(server, "POST", "/v1/api_keys", {"name": "budgets", **options})).json()
    return Key(body["id"], body["key"])


def new_budget(server: Server, **facts: Any) -> dict[str, Any]:
    """A budget, total unless `facts` say otherwise."""
    status, _, raw = _ask(server, "POST", "/v1/budgets", {"period": "total", **facts})
    assert status == 201, raw
    made: dict[str, Any] = json.loads(raw)
    return made


def key_budget(server: Server, hard_limit_usd: str, **facts: Any) -> tuple[Key, dict[str, Any]]:
    """A key and the budget that it alone has."""
    key = new_key(server)
    return key, new_budget(server, scope="key", target=key.id, hard_limit_usd=hard_limit_usd, **facts)


def look(server: Server, budget: dict[str, Any]) -> dict[str, Any]:
    """The budget as it stands."""
    status, body = server.get(f"/v1/budgets/{budget['id']}", key=server.credentials["api_key"])
    assert status == 200, body
    found: dict[str, Any] = body
    return found


def spent(server: Server, budget: dict[str, Any]) -> Decimal:
    return Decimal(look(server, budget)["spent_usd"])


def usage_of(server: Server, key: Key) -> Decimal:
    """What the key's calls cost by the usage report."""
    status, body = server.get(f"/v1/usage?key={key.id}", key=server.credentials["api_key"])
    assert status == 200, body
    return Decimal(body["totals"]["cost_usd"])


def chat(server: Server, key: Key, text: str = "[[tokens:5]]", **members: Any) -> Answer:
    body = {"model": "sandbox", "messages": [{"role": "user", "content": text}], "max_tokens": 5, **members}
    return Answer(*server.request("POST", "/v1/chat/completions", body=body, key=key.secret))


def cost_of(usage: dict[str, Any]) -> Decimal:
    """What an answer with this usage costs."""
    return INPUT_USD * int(usage["prompt_tokens"]) + OUTPUT_USD * int(usage["completion_tokens"])


def _ask(server: Server, method: str, path: str, body: Any) -> tuple[int, dict[str, str], bytes]:
    return server.request(method, path, body=body, key=server.credentials["api_key"])
