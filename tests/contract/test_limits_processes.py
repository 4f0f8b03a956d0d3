"""Four real processes on one state: exactly the permitted number passes, and a revoked key nowhere."""

from __future__ import annotations

import asyncio
import json
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from modelport.access.model import Grant, KeyChange, NewKey
from modelport.calls import Limits
from modelport.db.engine import open_database
from modelport.db.migrate import migrate
from modelport.kit.clock import SystemClock
from modelport.state.open import open_state
from tests.store.world import World, open_world

PROCESSES = 4
RUNS = 10
REQUESTS = 100
TOKENS = 10_000


class Worker:
    """A process that carries out one task after another."""

    def __init__(self, process: Process) -> None:
        self._process = process

    async def ask(self, **task: Any) -> dict[str, Any]:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(task).encode() + b"\n")
        await self._process.stdin.drain()
        answer: dict[str, Any] = json.loads(await self.line())
        return answer

    async def line(self) -> str:
        assert self._process.stdout is not None
        return (await asyncio.wait_for(self._process.stdout.readline(), 60)).decode()


@pytest.fixture(params=["sqlite", "redis"])
def state_url(request: pytest.FixtureRequest) -> str:
    url: str = request.getfixturevalue("redis_url") if request.param == "redis" else "sqlite"
    return url


@asynccontextmanager
async def worker(state_url: str, folder: Path) -> AsyncIterator[Worker]:
    command = [sys.executable, "-m", "tests.contract.limit_process", state_url, str(folder)]
    process = await asyncio.create_subprocess_exec(*command, stdin=PIPE, stdout=PIPE)
    made = Worker(process)
    try:
        assert await made.line() == "ready\n"
        yield made
        assert process.stdin is not None
        process.stdin.close()
        assert await asyncio.wait_for(process.wait(), 30) == 0
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


@pytest.fixture
async def folder(tmp_path: Path) -> Path:
    """A folder with a migrated database, whose name is also the state's namespace."""
    db = open_database("", data_dir=tmp_path, pool_size=1)
    await migrate(db)
    await db.close()
    return tmp_path


@pytest.fixture
async def workers(state_url: str, folder: Path) -> AsyncIterator[list[Worker]]:
    async with AsyncExitStack() as stack:
        yield [await stack.enter_async_context(worker(state_url, folder)) for _ in range(PROCESSES)]


@pytest.fixture
async def world(state_url: str, folder: Path) -> AsyncIterator[World]:
    """The services of one more process, which is the one that changes things."""
    db = open_database("", data_dir=folder, pool_size=1)
    state = open_state(state_url, data_dir=folder, workers=4, namespace=folder.name, clock=SystemClock())
    async with open_world(db, state=state) as made:
        yield made
    await db.close()


async def burst(workers: list[Worker], name: str, *, tokens: int, used: int) -> tuple[int, set[str]]:
    """How many of 240 calls pass, and the kinds of limits that refused the others."""
    limits = {"requests_per_minute": REQUESTS, "tokens_per_minute": TOKENS}
    task = {"run": name, "attempts": 60, "tokens": tokens, "used": used, "limits": limits}
    answers = await asyncio.gather(*(one.ask(**task) for one in workers))
    return sum(answer["passed"] for answer in answers), {kind for answer in answers for kind in answer["refused"]}


async def test_exactly_the_permitted_number_passes_in_ten_runs(workers: list[Worker]) -> None:
    for run in range(RUNS):
        assert await burst(workers, f"requests-{run}", tokens=10, used=10) == (REQUESTS, {"requests"})
        assert await burst(workers, f"tokens-{run}", tokens=150, used=150) == (TOKENS // 150, {"tokens"})
        assert await burst(workers, f"both-{run}", tokens=100, used=100) == (REQUESTS, {"requests"})
        # Twice as many tokens are reserved as are used, so what was used never reaches what was allowed.
        passed, _ = await burst(workers, f"settled-{run}", tokens=200, used=100)
        assert TOKENS // 200 <= passed < REQUESTS


async def test_a_revoked_key_is_refused_by_every_process_at_its_next_call(workers: list[Worker], world: World) -> None:
    alice = await world.tenant("Alice")
    for _ in range(RUNS):
        new = NewKey("short", Grant(mode="live", scopes=frozenset({"inference"})))
        key, secret = await world.keys.create(alice.caller, new)
        for _ in range(2):
            answers = await asyncio.gather(*(one.ask(secret=secret) for one in workers))
            assert [answer["answer"] for answer in answers] == ["ok"] * PROCESSES
        await world.keys.revoke(alice.caller, key.id)
        answers = await asyncio.gather(*(one.ask(secret=secret) for one in workers))
        assert [answer["answer"] for answer in answers] == ["invalid_api_key"] * PROCESSES


async def test_a_lowered_limit_holds_in_every_process(workers: list[Worker], world: World) -> None:
    """The call that notices still had its place under the old limit; it is the last one in its process."""
    alice = await world.tenant("Alice")
    assert (await workers[0].ask(secret=alice.secret))["answer"] == "ok"
    await world.keys.update(alice.caller, alice.key.id, KeyChange(limits=Limits(requests_per_minute=0)))
    for one in workers:
        await one.ask(secret=alice.secret)
        assert (await one.ask(secret=alice.secret))["answer"] == "rate_limit_exceeded"
