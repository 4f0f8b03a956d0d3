"""Budgets under load: never a nano-dollar too much, hardly any left over, whatever dies meanwhile."""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import random
import shutil
import signal
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.budget_calls import CONFIG, Key, chat, key_budget, look, new_key, spent, usage_of
from tests.campaign import rounds
from tests.services import Service
from tests.serving import Server
from tests.waiting import wait_until

CALLS = 500
# So that 500 calls want about twice the dollar that there is.
DEAR = CONFIG.replace('"1", output_usd_per_mtok = "2"', '"2.50", output_usd_per_mtok = "20"')
_numbers = itertools.count(1)


@pytest.fixture
def pair(postgres_database: str, redis_url: str, tmp_path: Path) -> Iterator[tuple[Server, Server]]:
    """Two instances of four workers, as on two machines: one database and one Redis."""
    environment = {
        "MODELPORT_DATABASE__URL": postgres_database,
        "MODELPORT_STATE__URL": redis_url,
        "MODELPORT_STATE__NAMESPACE": f"budgets-{os.getpid()}-{next(_numbers)}",
    }
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    first, second = (Server(tmp_path / name, config=DEAR, env=environment, workers=4) for name in ("a", "b"))
    with first, second:
        # Keys are in the database, which the first instance made.
        shutil.copy(first.data_dir / "credentials.json", second.data_dir)
        yield first, second


@dataclass
class Seen:
    """What the clients saw: how calls ended, and what the answers that arrived cost."""

    outcomes: Counter[str] = field(default_factory=Counter)
    cost_usd: Decimal = Decimal(0)


async def test_500_calls_at_once_spend_a_dollar_and_not_a_nano_dollar_more(pair: tuple[Server, Server]) -> None:
    for number in range(rounds(short=1, full=10)):
        key, budget = await asyncio.to_thread(key_budget, pair[0], "1.00")
        seen, dice = Seen(), random.Random(number)
        async with _clients(pair) as clients:
            await asyncio.gather(
                *(_call_until_done(clients[n % 2], key, seen, random.Random(dice.random())) for n in range(CALLS))
            )
        assert sum(seen.outcomes.values()) == CALLS
        assert set(seen.outcomes) <= {"200", "429 insufficient_quota"}, seen.outcomes
        assert Decimal("0.95") <= spent(pair[1], budget) <= Decimal("1.000000000"), seen
        assert look(pair[0], budget)["reserved_usd"] == "0.00"

        async def recorded(key: Key = key, budget: dict[str, Any] = budget) -> bool:
            return usage_of(pair[1], key) == usage_of(pair[0], key) == spent(pair[0], budget)

        await wait_until(recorded, "both instances' usage is what was spent")
        assert seen.cost_usd == spent(pair[0], budget)


async def test_a_worker_killed_with_reservations_costs_nothing_and_gives_them_back(tmp_path: Path) -> None:
    with Server(tmp_path, config=CONFIG, workers=2) as server:
        key, budget = key_budget(server, "1.00")
        assert chat(server, key).status == 200
        hanging = [
            asyncio.create_task(
                asyncio.to_thread(chat, server, key, "[[tokens:50]] [[hang:3]]", max_tokens=50, stream=True)
            )
            for _ in range(6)
        ]
        reservation = Decimal("0.0001")
        await wait_until(lambda: Decimal(look(server, budget)["reserved_usd"]) > 6 * reservation, "all of them run")
        assert server.process is not None
        for pid in server.workers():
            os.kill(pid, signal.SIGKILL)
        assert all(isinstance(one, Exception) for one in await asyncio.gather(*hanging, return_exceptions=True))

        async def given_back() -> bool:
            try:
                return look(server, budget)["reserved_usd"] == "0.00"
            except OSError:
                # New workers are on their way.
                return False

        await wait_until(given_back, "the reservations of the dead have expired", timeout_s=60)
        assert chat(server, key).status == 200
        assert spent(server, budget) == usage_of(server, key)
        status, body = server.get(f"/v1/usage?key={key.id}", key=server.credentials["api_key"])
        assert (status, body["totals"]["calls"], body["totals"]["failed"]) == (200, 8, 6)


async def test_a_redis_that_loses_its_memory_under_load_overshoots_nothing(
    tmp_path: Path, redis_service: Service
) -> None:
    environment = {"MODELPORT_STATE__URL": redis_service.url}
    with Server(tmp_path, config=DEAR, env=environment, workers=2) as server:
        key, budget = key_budget(server, "0.30")
        seen, stop = Seen(), asyncio.Event()
        async with _clients((server, server)) as clients:

            async def client(number: int) -> None:
                dice = random.Random(number)
                while not stop.is_set():
                    outcome = await _call_once(clients[number % 2], key, seen, dice)
                    if outcome == "429 insufficient_quota":
                        return
                    if outcome != "200":
                        await asyncio.sleep(0)

            tasks = [asyncio.create_task(client(number)) for number in range(24)]
            await wait_until(lambda: seen.outcomes["200"] > 20, "money is being spent")
            redis_service.kill()
            redis_service.start()
            await wait_until(lambda: all(task.done() for task in tasks), "the budget is spent", timeout_s=90)
            stop.set()
            await asyncio.gather(*tasks)

        def settled() -> bool:
            standing = look(server, budget)
            return standing["reserved_usd"] == "0.00" and Decimal(standing["spent_usd"]) == usage_of(server, key)

        await wait_until(settled, "all is in the record, and nothing is held for it any more", timeout_s=60)
        assert spent(server, budget) <= Decimal("0.30")
        assert seen.cost_usd <= usage_of(server, key)


async def test_while_postgres_is_away_budgets_go_on_and_all_is_in_the_record_later(
    tmp_path: Path, postgres_service: Service
) -> None:
    environment = {"MODELPORT_DATABASE__URL": postgres_service.url}
    with Server(tmp_path, config=CONFIG, env=environment, workers=1) as server:
        key, budget = key_budget(server, "0.0006")
        other = new_key(server)
        # One worker, which knows both keys by then: one that does not would refuse them while the database is away.
        for _ in range(20):
            chat(server, key, "[[tokens:1]]", max_tokens=1)
        chat(server, other)
        before = spent(server, budget)
        postgres_service.stop()
        outcomes = Counter(chat(server, key).status for _ in range(24))
        assert set(outcomes) == {200, 429}, "spent in the middle of the outage, and not before"
        assert chat(server, other).status == 200
        postgres_service.start()

        def recorded() -> bool:
            try:
                return before < usage_of(server, key) == spent(server, budget)
            except (AssertionError, OSError):
                return False

        await wait_until(recorded, "the record has caught up", timeout_s=60)
        assert spent(server, budget) <= Decimal("0.0006")


class _clients:
    """An HTTP client for each of two servers."""

    def __init__(self, pair: tuple[Server, Server]) -> None:
        limits = httpx.Limits(max_connections=CALLS)
        self._clients = [httpx.AsyncClient(base_url=one.base_url, timeout=120, limits=limits) for one in pair]

    async def __aenter__(self) -> list[httpx.AsyncClient]:
        return self._clients

    async def __aexit__(self, *_: object) -> None:
        for client in self._clients:
            await client.aclose()


async def _call_until_done(client: httpx.AsyncClient, key: Key, seen: Seen, dice: random.Random) -> None:
    """One call, tried again as long as it is told that it may be."""
    while True:
        outcome = await _call_once(client, key, seen, dice)
        if outcome != "429 rate_limit_exceeded":
            return
        seen.outcomes[outcome] -= 1
        seen.outcomes += Counter()


async def _call_once(client: httpx.AsyncClient, key: Key, seen: Seen, dice: random.Random) -> str:
    bound = dice.randint(50, 400)
    text = f"[[tokens:{dice.randint(bound // 2, bound)}]] [[latency:{dice.randint(0, 100)}ms]]"
    body: dict[str, Any] = {"model": "sandbox", "messages": [{"role": "user", "content": text}], "max_tokens": bound}
    if dice.random() < 0.5:
        body |= {"stream": True, "stream_options": {"include_usage": True}}
    try:
        answer = await client.post("/v1/chat/completions", json=body, headers={"authorization": f"Bearer {key.secret}"})
    except httpx.HTTPError:
        outcome = "broken"
    else:
        outcome = str(answer.status_code)
        if answer.status_code == 200:
            seen.cost_usd += _cost(answer, streamed="stream" in body)
        else:
            outcome += f" {answer.json()['error']['code']}"
    seen.outcomes[outcome] += 1
    return outcome


def _cost(answer: httpx.Response, *, streamed: bool) -> Decimal:
    """What an answer cost: told in a header, or, of a stream, by the usage at its end."""
    if not streamed:
        return Decimal(answer.headers["x-cost-usd"])
    events = [line[6:] for line in answer.text.split("\n") if line.startswith("data: ")]
    assert events[-1] == "[DONE]"
    usage = json.loads(events[-2])["usage"]
    return (Decimal("2.50") * usage["prompt_tokens"] + 20 * usage["completion_tokens"]) / 1_000_000
