"""A request under an Idempotency-Key runs once: many at the same time, several processes, and processes that die."""

from __future__ import annotations

import asyncio
import itertools
import os
import signal
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.campaign import rounds
from tests.inside import in_flight
from tests.serving import Server
from tests.waiting import wait_until

CONFIG = """
default_models = false
[[models]]
id = "sandbox"
backend = "sandbox"
prices = { input_usd_per_mtok = "1", output_usd_per_mtok = "2" }
[idempotency]
lease_s = 1.5
"""
AT_ONCE = 100
_numbers = itertools.count(1)


@pytest.fixture(params=["one server", "two servers"])
def servers(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[list[Server]]:
    """Two workers on one SQLite file, or two instances of two workers on one PostgreSQL and one Redis."""
    with ExitStack() as stack:
        if request.param == "one server":
            yield [stack.enter_context(Server(tmp_path, config=CONFIG, workers=2))]
            return
        environment = {
            "MODELPORT_DATABASE__URL": request.getfixturevalue("postgres_database"),
            "MODELPORT_STATE__URL": request.getfixturevalue("redis_url"),
            "MODELPORT_STATE__NAMESPACE": f"once-{os.getpid()}-{next(_numbers)}",
        }
        made = []
        for name in ("a", "b"):
            (tmp_path / name).mkdir()
            server = Server(tmp_path / name, config=CONFIG, env=environment, workers=2)
            made.append(stack.enter_context(server))
        yield made


def sent(text: str) -> dict[str, Any]:
    return {"model": "sandbox", "messages": [{"role": "user", "content": text}]}


def post(server: Server, key: str, once: str, text: str) -> tuple[int, dict[str, str], bytes]:
    headers = {"idempotency-key": once}
    return server.request("POST", "/v1/chat/completions", body=sent(text), key=key, headers=headers)


def usage(server: Server, key: str, by: str = "") -> dict[str, Any]:
    """The totals of the organization's calls, or each group's."""
    found: dict[str, Any] = server.get(f"/v1/usage?group_by={by}" if by else "/v1/usage", key=key)[1]
    return {row["group"][by]: row for row in found["data"]} if by else found["totals"]


async def test_a_hundred_equal_requests_at_once_run_once(servers: list[Server]) -> None:
    key = servers[0].credentials["api_key"]
    async with httpx.AsyncClient(timeout=60, headers={"authorization": f"Bearer {key}"}) as http:
        for number in range(1, rounds(short=2, full=20) + 1):
            text = f"[[latency:100ms]] [[tokens:3]] {number}"

            async def one(place: int, text: str = text, once: str = f"k{number}") -> httpx.Response:
                url = f"{servers[place % len(servers)].base_url}/v1/chat/completions"
                return await http.post(url, json=sent(text), headers={"idempotency-key": once})

            answers = await asyncio.gather(*(one(place) for place in range(AT_ONCE)))
            ran = [answer for answer in answers if answer.status_code == 200]
            assert len({answer.headers["x-request-id"] for answer in ran}) == 1
            assert sum("idempotent-replayed" not in answer.headers for answer in ran) == 1
            codes = Counter(answer.json()["error"]["code"] for answer in answers if answer.status_code != 200)
            assert set(codes) <= {"idempotency_in_flight"}
            again = await one(0)
            assert (again.content, again.headers["idempotent-replayed"]) == (ran[0].content, "true")
    for server in servers:
        await wait_until(lambda: usage(server, key)["calls"] == number, "the calls are in the books")  # noqa: B023
        assert usage(server, key)["succeeded"] == number


async def test_the_request_of_a_killed_server_runs_anew_after_its_lease(tmp_path: Path) -> None:
    """It was billed nothing, and its repeat is billed once, however often it is repeated."""
    server = Server(tmp_path, config=CONFIG)
    await asyncio.to_thread(server.start)
    key, text = server.credentials["api_key"], "[[latency:700ms]] [[tokens:4]]"
    lost = asyncio.create_task(asyncio.to_thread(_or_error, server, key, text))
    await wait_until(lambda: in_flight(server) == 1, "the request runs")
    await asyncio.to_thread(server.kill)
    assert await lost is None
    await asyncio.to_thread(server.start)
    answers: list[tuple[int, dict[str, str], bytes]] = []

    async def ran() -> bool:
        answers.append(await asyncio.to_thread(post, server, key, "k", text))
        assert answers[-1][0] in (200, 409)
        return answers[-1][0] == 200

    await wait_until(ran, "the lease of the killed server is over")
    assert "idempotent-replayed" not in answers[-1][1]
    assert post(server, key, "k", text)[2] == answers[-1][2]
    by_status = usage(server, key, by="status")
    assert {status: row["calls"] for status, row in by_status.items()} == {"200": 1, "500": 1}
    assert (by_status["500"]["cost_usd"], by_status["200"]["output_tokens"]) == ("0.00", 4)
    assert await asyncio.to_thread(server.stop) == 0


async def test_a_worker_that_is_killed_leaves_its_request_to_the_others(servers: list[Server]) -> None:
    server, key, text = servers[0], servers[0].credentials["api_key"], "[[latency:1s]] [[tokens:4]]"
    lost = asyncio.create_task(asyncio.to_thread(_or_error, server, key, text))
    await wait_until(lambda: in_flight(server) == 1, "the request runs")
    for pid in server.workers():
        os.kill(pid, signal.SIGKILL)
    assert await lost is None

    async def ran() -> bool:
        return (await asyncio.to_thread(post, servers[-1], key, "k", text))[0] == 200

    await wait_until(ran, "another process runs the request")
    await wait_until(lambda: usage(servers[-1], key)["succeeded"] == 1, "it is in the books")


async def test_a_long_request_keeps_its_claim_far_beyond_one_lease(servers: list[Server]) -> None:
    key, text = servers[0].credentials["api_key"], "[[latency:5s]] [[tokens:4]]"
    first = asyncio.create_task(asyncio.to_thread(post, servers[0], key, "k", text))
    await wait_until(lambda: in_flight(servers[0]) == 1, "the request runs")
    while not first.done():
        status, headers, _ = await asyncio.to_thread(post, servers[-1], key, "k", text)
        assert status == 409 or headers["idempotent-replayed"] == "true"
    assert (await first)[0] == 200
    assert (await asyncio.to_thread(post, servers[-1], key, "k", text))[2] == (await first)[2]


def _or_error(server: Server, key: str, text: str) -> tuple[int, dict[str, str], bytes] | None:
    """The answer; None for a connection that was lost."""
    try:
        return post(server, key, "k", text)
    except OSError:
        return None
