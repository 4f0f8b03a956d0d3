"""What the outage tests share: a server on services of its own, and clients that note what they saw."""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import asyncpg  # type: ignore[import-untyped]
import httpx

from tests.services import Service
from tests.serving import Server
from tests.waiting import wait_until

SANDBOX = """
default_models = false
[[models]]
id = "sandbox"
backend = "sandbox"
prices = { input_usd_per_mtok = "1", output_usd_per_mtok = "2" }
"""


@dataclass
class Seen:
    """What clients saw: how often each outcome came, and the tokens of every answer that arrived whole."""

    statuses: Counter[str] = field(default_factory=Counter)
    whole: dict[str, tuple[int, int]] = field(default_factory=dict)
    slowest_s: float = 0.0
    retry_after: set[str] = field(default_factory=set)


async def chat(
    http: httpx.AsyncClient, key: str, seen: Seen, *, text: str = "[[tokens:3]]", stream: bool, model: str = "sandbox"
) -> str:
    """One call; what came of it: a status with the error's code, or `broken` for a connection that was lost."""
    body: dict[str, Any] = {"model": model, "messages": [{"role": "user", "content": text}], "stream": stream}
    if stream:
        body["stream_options"] = {"include_usage": True}
    began_s = time.monotonic()
    try:
        answer = await http.post("/v1/chat/completions", json=body, headers={"authorization": f"Bearer {key}"})
    except httpx.HTTPError:
        outcome = "broken"
    else:
        outcome = _outcome(answer, seen, stream=stream)
    seen.statuses[outcome] += 1
    seen.slowest_s = max(seen.slowest_s, time.monotonic() - began_s)
    return outcome


@asynccontextmanager
async def load(server: Server, key: str, *, clients: int, text: str = "[[tokens:3]]") -> AsyncIterator[Seen]:
    """Clients that call one after the other, half of them streaming, until the block ends."""
    seen, stop = Seen(), asyncio.Event()

    async def client(number: int) -> None:
        async with httpx.AsyncClient(base_url=server.base_url, timeout=60) as http:
            while not stop.is_set():
                outcome = await chat(http, key, seen, text=text, stream=number % 2 == 0)
                if outcome != "200":
                    # A client that is refused comes back a little later, as one with any sense does.
                    await asyncio.sleep(0.02)

    tasks = [asyncio.create_task(client(number)) for number in range(clients)]
    try:
        yield seen
    finally:
        stop.set()
        await asyncio.gather(*tasks)


@asynccontextmanager
async def steady(server: Server, key: str, *, per_second: int, model: str) -> AsyncIterator[Seen]:
    """Calls at a steady rate, however long each takes, half of them streaming, until the block ends."""
    seen, stop = Seen(), asyncio.Event()
    pool = httpx.Limits(max_connections=1_000, max_keepalive_connections=100)
    under_way: set[asyncio.Task[str]] = set()

    async def pace() -> None:
        began_s, number = time.monotonic(), 0
        while not stop.is_set():
            task = asyncio.create_task(chat(http, key, seen, stream=number % 2 == 0, model=model))
            under_way.add(task)
            task.add_done_callback(under_way.discard)
            number += 1
            await asyncio.sleep(max(began_s + number / per_second - time.monotonic(), 0))

    async with httpx.AsyncClient(base_url=server.base_url, timeout=60, limits=pool) as http:
        pacing = asyncio.create_task(pace())
        try:
            yield seen
        finally:
            stop.set()
            await pacing
            await asyncio.gather(*under_way)


def new_key(server: Server, **options: Any) -> str:
    """The secret of a new key, which no cache holds yet."""
    key = server.credentials["api_key"]
    status, _, raw = server.request("POST", "/v1/api_keys", body={"name": "outage", **options}, key=key)
    assert status == 201, raw
    secret: str = json.loads(raw)["key"]
    return secret


def ask(server: Server, key: str) -> tuple[int, str, str]:
    """One small call: status, the error's code (empty when it went well), Retry-After."""
    body = {"model": "sandbox", "messages": [{"role": "user", "content": "[[tokens:2]]"}]}
    status, headers, raw = server.request("POST", "/v1/chat/completions", body=body, key=key)
    return status, "" if status == 200 else json.loads(raw)["error"]["code"], headers.get("retry-after", "")


def manage(server: Server, path: str = "/v1/usage") -> tuple[int, str]:
    """A read of the management API: status, and the code of its error."""
    status, body = server.get(path, key=server.credentials["api_key"])
    return status, "" if status == 200 else body["error"]["code"]


def ready(server: Server) -> bool:
    return server.get("/readyz")[0] == 200


async def reach(seen: Seen, outcome: str, more: int) -> None:
    """Wait for `more` calls with this outcome."""
    enough = seen.statuses[outcome] + more
    try:
        await wait_until(lambda: seen.statuses[outcome] >= enough, f"{more} more calls get {outcome}", timeout_s=90)
    except AssertionError as error:
        raise AssertionError(f"{error}; until now: {dict(seen.statuses)}") from None


async def recorded(postgres: Service) -> dict[str, tuple[int, int]]:
    """Every usage event in the database: call id → tokens in and out."""
    connection = await asyncpg.connect(postgres.url)
    try:
        rows = await connection.fetch("SELECT call_id, input_tokens, output_tokens FROM usage_events")
    finally:
        await connection.close()
    assert len({row["call_id"] for row in rows}) == len(rows), "a call is there twice"
    return {row["call_id"]: (row["input_tokens"], row["output_tokens"]) for row in rows}


async def all_recorded(seen: Seen, postgres: Service) -> dict[str, tuple[int, int]]:
    """The rows, once every call whose answer arrived whole is among them as its client saw it."""
    found: dict[str, tuple[int, int]] = {}

    async def complete() -> bool:
        found.update(await recorded(postgres))
        return seen.whole.items() <= found.items()

    try:
        await wait_until(complete, "every answer that arrived has its row", timeout_s=60)
    except AssertionError as error:
        missing = {id_: (tokens, found.get(id_)) for id_, tokens in seen.whole.items() if found.get(id_) != tokens}
        raise AssertionError(f"{error}; of {len(seen.whole)} these differ: {missing}") from None
    served = [row for row in found.values() if row != (0, 0)]
    lost = seen.statuses["broken"] + seen.statuses["200 with an error event"]
    assert len(seen.whole) <= len(served) <= len(seen.whole) + lost
    return found


async def is_ready(server: Server) -> bool:
    return await asyncio.to_thread(answers, ready, server)


def answers(question: Callable[[Server], bool], server: Server) -> bool:
    try:
        return question(server)
    except OSError:
        return False


def _outcome(answer: httpx.Response, seen: Seen, *, stream: bool) -> str:
    if answer.status_code != 200:
        seen.retry_after.add(answer.headers.get("retry-after", ""))
        return f"{answer.status_code} {answer.json()['error']['code']}"
    usage = _stream_usage(answer.text) if stream else answer.json()["usage"]
    if usage is None:
        return "200 with an error event"
    seen.whole[answer.headers["x-request-id"]] = (usage["prompt_tokens"], usage["completion_tokens"])
    return "200"


def _stream_usage(text: str) -> dict[str, int] | None:
    events = [line[6:] for line in text.split("\n") if line.startswith("data: ")]
    assert events, "a stream with status 200 was cut off before its first event"
    if events[-1] != "[DONE]":
        assert "error" in json.loads(events[-1]), "a stream was cut off silently"
        return None
    usage: dict[str, int] = json.loads(events[-2])["usage"]
    return usage
