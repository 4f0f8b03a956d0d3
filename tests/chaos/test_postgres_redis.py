"""The same program on PostgreSQL and Redis: by two addresses alone, with several workers and several instances."""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from decimal import Decimal
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest
from openai import OpenAI

from tests.serving import Server
from tests.waiting import wait_until

CONFIG = """
default_models = false
[[models]]
id = "sandbox"
backend = "sandbox"
prices = { input_usd_per_mtok = "1", output_usd_per_mtok = "2" }
"""
_numbers = itertools.count(1)


@pytest.fixture
def fleet(postgres_database: str, redis_url: str) -> dict[str, str]:
    """The environment that puts a server on the PostgreSQL and the Redis of the tests."""
    return {
        "MODELPORT_DATABASE__URL": postgres_database,
        "MODELPORT_STATE__URL": redis_url,
        "MODELPORT_STATE__NAMESPACE": f"fleet-{os.getpid()}-{next(_numbers)}",
    }


@pytest.fixture
def server(fleet: dict[str, str], tmp_path: Path) -> Iterator[Server]:
    with Server(tmp_path, config=CONFIG, env=fleet, workers=2) as server:
        yield server


@pytest.fixture
def pair(fleet: dict[str, str], tmp_path: Path) -> Iterator[tuple[Server, Server]]:
    """Two instances, as on two machines: a data directory and a port each, one database and one Redis."""
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    first, second = (Server(tmp_path / name, config=CONFIG, env=fleet, workers=2) for name in ("a", "b"))
    with first, second:
        yield first, second


def test_usage_is_what_the_sdk_saw_and_a_restart_keeps_everything(server: Server) -> None:
    key = server.credentials["api_key"]
    seen = _calls_by_sdk(server, key)
    assert _receipts(server, key, seen) == seen
    before = _totals(server, key)
    assert before["calls"] == len(seen)
    nanos = sum(input_ * 1_000 + output * 2_000 for input_, output in seen.values())
    assert Decimal(before["cost_usd"]) == Decimal(nanos) / 10**9
    assert server.stop() == 0
    server.start()
    assert _receipts(server, key, seen) == seen
    assert _totals(server, key) == before
    assert not (server.data_dir / "modelport.db").exists()


def test_migrate_and_doctor_find_the_same_database(fleet: dict[str, str], server: Server) -> None:
    """The command line reads the same two addresses as the server does."""
    environment = {**os.environ, **fleet}
    for command, *options in (("migrate", "--json"), ("doctor", "--json", "--config", _config(server))):
        done = subprocess.run(
            [sys.executable, "-m", "modelport.cli", command, "--data-dir", str(server.data_dir), *options],
            env=environment,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        answer = json.loads(done.stdout)
        if command == "migrate":
            assert answer["before"] == answer["after"] != ""
        else:
            results = {finding["what"]: finding for finding in answer}
            assert results["database"]["result"] == "ok", results["database"]


async def test_a_second_instance_joins_with_the_first_ones_keys(pair: tuple[Server, Server]) -> None:
    first, second = pair
    key = first.credentials["api_key"]
    assert not (second.data_dir / "credentials.json").exists(), "only an empty database is a first start"
    seen = await asyncio.to_thread(lambda: _calls_by_sdk(first, key) | _calls_by_sdk(second, key))
    for one in pair:
        # The other instance's journal is committed by itself, within its interval.
        await wait_until(partial(_counts, one, key, len(seen)), "every call is counted")
        assert await asyncio.to_thread(_receipts, one, key, seen) == seen


async def test_limits_are_exact_over_two_instances_of_two_workers(pair: tuple[Server, Server]) -> None:
    """A hundred requests a minute are a hundred, wherever they arrive."""
    for _ in range(2):
        key = await asyncio.to_thread(_new_key, pair[0], limits={"requests_per_minute": 100})
        statuses = await _hammer(pair, key, calls=240)
        assert statuses == {200: 100, 429: 140}


async def test_tokens_are_exact_over_two_instances_of_two_workers(pair: tuple[Server, Server]) -> None:
    key = await asyncio.to_thread(_new_key, pair[0], limits={"tokens_per_minute": 5_000})
    used: list[int] = []
    statuses = await _hammer(pair, key, calls=160, words=90, used=used)
    assert sum(used) <= 5_000 < sum(used) + max(used)
    assert statuses[200] == len(used)
    assert set(statuses) == {200, 429}


def test_a_key_revoked_on_one_instance_is_refused_on_the_other_at_its_next_call(pair: tuple[Server, Server]) -> None:
    first, second = pair
    for _ in range(10):
        key, key_id = _new_key_and_id(first)
        # Every worker of the other instance has the key in its cache.
        assert {_chat(second, key) for _ in range(8)} == {200}
        status, _, _ = first.request("DELETE", f"/v1/api_keys/{key_id}", key=first.credentials["api_key"])
        assert status == 200
        assert {_chat(second, key) for _ in range(8)} == {401}


def test_a_key_changed_on_one_instance_is_changed_on_the_other(pair: tuple[Server, Server]) -> None:
    first, second = pair
    key, key_id = _new_key_and_id(first)
    assert _chat(second, key) == 200
    change = {"scopes": ["models:read"]}
    path = f"/v1/api_keys/{key_id}"
    assert first.request("PATCH", path, body=change, key=first.credentials["api_key"])[0] == 200
    assert {_chat(second, key) for _ in range(4)} == {403}


def _config(server: Server) -> str:
    return str(server.data_dir.parent / "modelport.toml")


def _calls_by_sdk(server: Server, key: str) -> dict[str, tuple[int, int]]:
    """Some calls through the official SDK, streamed and not: call id → tokens in and out, as the client saw them."""
    seen: dict[str, tuple[int, int]] = {}
    with OpenAI(base_url=f"{server.base_url}/v1", api_key=key, max_retries=0) as client:
        for words in range(1, 13):
            question: list[Any] = [{"role": "user", "content": f"[[tokens:{words}]]"}]
            whole = client.chat.completions.with_raw_response.create(model="sandbox", messages=question)
            usage = whole.parse().usage
            assert usage is not None
            seen[whole.headers["x-request-id"]] = (usage.prompt_tokens, usage.completion_tokens)
            raw = client.chat.completions.with_raw_response.create(
                model="sandbox", messages=question, stream=True, stream_options={"include_usage": True}
            )
            *_, last = raw.parse()
            assert last.usage is not None
            seen[raw.headers["x-request-id"]] = (last.usage.prompt_tokens, last.usage.completion_tokens)
    return seen


def _receipts(server: Server, key: str, calls: dict[str, tuple[int, int]]) -> dict[str, tuple[int, int]]:
    found = {}
    for call_id in calls:
        status, receipt = server.get(f"/v1/requests/{call_id}", key=key)
        assert status == 200, receipt
        found[call_id] = (receipt["input_tokens"], receipt["output_tokens"])
    return found


def _totals(server: Server, key: str) -> dict[str, Any]:
    status, report = server.get("/v1/usage", key=key)
    assert status == 200, report
    counted = ("calls", "succeeded", "failed", "input_tokens", "output_tokens", "cost_usd")
    return {name: report["totals"][name] for name in counted}


def _counts(server: Server, key: str, calls: int) -> bool:
    return bool(_totals(server, key)["calls"] == calls)


def _new_key_and_id(server: Server, **options: Any) -> tuple[str, str]:
    body = {"name": "fleet", **options}
    status, _, raw = server.request("POST", "/v1/api_keys", body=body, key=server.credentials["api_key"])
    assert status == 201, raw
    made = json.loads(raw)
    return made["key"], made["id"]


def _new_key(server: Server, **options: Any) -> str:
    return _new_key_and_id(server, **options)[0]


def _chat(server: Server, key: str) -> int:
    body = {"model": "sandbox", "messages": [{"role": "user", "content": "[[tokens:2]]"}]}
    return server.request("POST", "/v1/chat/completions", body=body, key=key)[0]


async def _hammer(
    pair: tuple[Server, Server], key: str, *, calls: int, words: int = 1, used: list[int] | None = None
) -> Counter[int]:
    """`calls` at once, every other one to the other instance; how often each status came back."""
    body = {"model": "sandbox", "messages": [{"role": "user", "content": f"[[tokens:{words}]]"}], "max_tokens": words}
    pool = httpx.Limits(max_connections=32)
    async with httpx.AsyncClient(timeout=60, limits=pool) as http:
        headers = {"authorization": f"Bearer {key}"}
        answers = await asyncio.gather(
            *(
                http.post(f"{pair[number % 2].base_url}/v1/chat/completions", json=body, headers=headers)
                for number in range(calls)
            )
        )
    if used is not None:
        used.extend(answer.json()["usage"]["total_tokens"] for answer in answers if answer.status_code == 200)
    return Counter(answer.status_code for answer in answers)
