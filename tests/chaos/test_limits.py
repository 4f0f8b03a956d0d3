"""Four workers let through exactly what one would: never one call or token more."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.campaign import rounds
from tests.serving import Server

CONFIG = """
default_models = false
[[models]]
id = "sandbox"
backend = "sandbox"
"""
WORKERS = 4
CLIENTS = 64
CALLS = 3


@pytest.fixture(params=["sqlite", "redis"])
def server(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Server]:
    url = request.getfixturevalue("redis_url") if request.param == "redis" else "sqlite"
    with Server(tmp_path, config=CONFIG, env={"MODELPORT_STATE__URL": url}, workers=WORKERS) as server:
        yield server


async def test_a_hundred_requests_a_minute_are_a_hundred(server: Server) -> None:
    for _ in range(rounds(short=3, full=10)):
        statuses = await _hammer(server, limits={"requests_per_minute": 100}, words=1)
        assert statuses == {200: 100, 429: CLIENTS * CALLS - 100}


async def test_ten_thousand_tokens_a_minute_are_ten_thousand(server: Server) -> None:
    for _ in range(rounds(short=3, full=10)):
        used: list[int] = []
        statuses = await _hammer(server, limits={"tokens_per_minute": 10_000}, words=90, used=used)
        assert sum(used) <= 10_000
        assert sum(used) + max(used) > 10_000, "room was left that a call would have fitted into"
        assert statuses[200] == len(used)
        assert set(statuses) <= {200, 429}


async def test_both_limits_hold_together(server: Server) -> None:
    used: list[int] = []
    limits = {"requests_per_minute": 100, "tokens_per_minute": 10_000}
    statuses = await _hammer(server, limits=limits, words=40, used=used)
    assert statuses[200] == 100
    assert sum(used) <= 10_000


async def _hammer(server: Server, *, limits: dict[str, int], words: int, used: list[int] | None = None) -> Counter[int]:
    """Every client calls at once with one new key; how often each status came back."""
    _, _, raw = await asyncio.to_thread(
        server.request, "POST", "/v1/api_keys", body={"name": "x", "limits": limits}, key=server.credentials["api_key"]
    )
    key = json.loads(raw)["key"]
    body = {
        "model": "sandbox",
        "messages": [{"role": "user", "content": f"[[tokens:{words}]]"}],
        "max_tokens": words,
    }
    pool = httpx.Limits(max_connections=CLIENTS)
    async with httpx.AsyncClient(base_url=server.base_url, timeout=60, limits=pool) as http:

        async def client() -> list[httpx.Response]:
            headers = {"authorization": f"Bearer {key}"}
            return [await http.post("/v1/chat/completions", json=body, headers=headers) for _ in range(CALLS)]

        answers = [answer for many in await asyncio.gather(*(client() for _ in range(CLIENTS))) for answer in many]
    if used is not None:
        used.extend(answer.json()["usage"]["total_tokens"] for answer in answers if answer.status_code == 200)
    return Counter(answer.status_code for answer in answers)
