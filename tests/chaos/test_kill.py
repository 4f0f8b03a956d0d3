"""Nothing that a client received in full is missing from the usage table after kill -9, and nothing is there twice."""

from __future__ import annotations

import asyncio
import json
import random
import sqlite3
from pathlib import Path

import httpx

from tests.campaign import rounds
from tests.serving import Server
from tests.waiting import wait_until

CONFIG = """
default_models = false
[[models]]
id = "sandbox"
backend = "sandbox"
prices = { input_usd_per_mtok = "1", output_usd_per_mtok = "2" }
"""
CLIENTS = 16
# Call id → (input tokens, output tokens) of an answer whose last byte arrived.
Received = dict[str, tuple[int, int]]


async def test_kill_at_random_points_loses_and_doubles_nothing(tmp_path: Path) -> None:
    server = Server(tmp_path, config=CONFIG)
    received: Received = {}
    in_flight = 0
    kills = rounds(short=4, full=20)
    for number in range(kills):
        await asyncio.to_thread(server.start)
        async with httpx.AsyncClient(base_url=server.base_url, timeout=30) as http:
            key = server.credentials["api_key"]
            stop = asyncio.Event()
            clients = [asyncio.create_task(_client(http, key, received, stop, seed=n)) for n in range(CLIENTS)]
            enough = len(received) + random.Random(number).randint(20, 400)
            await wait_until(lambda: len(received) >= enough, "the random point of the kill")  # noqa: B023
            await asyncio.to_thread(server.kill)
            stop.set()
            await asyncio.gather(*clients)
        in_flight += CLIENTS
    await asyncio.to_thread(server.start)
    key = server.credentials["api_key"]
    await asyncio.to_thread(server.get, "/v1/usage", key=key)
    await asyncio.to_thread(server.stop)
    rows = _rows(server.data_dir / "modelport.db")
    assert len(received) >= 20 * kills
    assert {id_: rows.get(id_) for id_ in received} == received
    unconfirmed = [id_ for id_ in rows if id_ not in received]
    assert len(unconfirmed) <= in_flight, "a success was recorded that no client was waiting for"


async def _client(http: httpx.AsyncClient, key: str, received: Received, stop: asyncio.Event, *, seed: int) -> None:
    chance = random.Random(seed)
    while not stop.is_set():
        streaming = chance.random() < 0.5
        words = chance.randint(1, 30)
        body = {
            "model": "sandbox",
            "messages": [{"role": "user", "content": f"[[tokens:{words}]] [[per_token:1ms]] hello"}],
            "stream": streaming,
            **({"stream_options": {"include_usage": True}} if streaming else {}),
        }
        try:
            answer = await http.post("/v1/chat/completions", json=body, headers={"authorization": f"Bearer {key}"})
        except httpx.HTTPError:
            continue
        usage = _usage(answer.text, streaming)
        if usage is not None:
            received[answer.headers["x-request-id"]] = usage


def _usage(text: str, streaming: bool) -> tuple[int, int] | None:
    """What the answer says it used, or None where it is not complete."""
    if streaming:
        events = [line[6:] for line in text.split("\n") if line.startswith("data: ")]
        if not events or events[-1] != "[DONE]":
            return None
        usage = json.loads(events[-2])["usage"]
    else:
        usage = json.loads(text)["usage"]
    return usage["prompt_tokens"], usage["completion_tokens"]


def _rows(path: Path) -> dict[str, tuple[int, int]]:
    with sqlite3.connect(path) as connection:
        rows = connection.execute(
            "SELECT call_id, input_tokens, output_tokens, cost_nanos FROM usage_events WHERE status = 200"
        ).fetchall()
    assert all(cost == input_ * 1_000 + output * 2_000 for _, input_, output, cost in rows)
    assert len({row[0] for row in rows}) == len(rows)
    return {row[0]: (row[1], row[2]) for row in rows}
