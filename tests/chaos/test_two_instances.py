"""Two instances under load lose Redis, PostgreSQL and one of them in turn: what is named happens, and nothing else."""

from __future__ import annotations

import asyncio
import os
import signal
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from tests.campaign import rounds
from tests.chaos.fleet import SANDBOX, Seen, all_recorded, is_ready, load, reach
from tests.services import Service
from tests.serving import Server
from tests.waiting import wait_until

CLIENTS = 6
ROUNDS = rounds(short=1, full=10)


@pytest.fixture
def pair(tmp_path: Path, redis_service: Service, postgres_service: Service) -> Iterator[tuple[Server, Server]]:
    """Two instances of two workers, as on two machines, on a PostgreSQL and a Redis that the test may stop."""
    environment = {"MODELPORT_DATABASE__URL": postgres_service.url, "MODELPORT_STATE__URL": redis_service.url}
    servers = []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        servers.append(Server(tmp_path / name, config=SANDBOX, env=environment, workers=2).start())
    yield servers[0], servers[1]
    for server in servers:
        server.kill()


async def test_counts_reconcile_to_the_last_call(
    pair: tuple[Server, Server], redis_service: Service, postgres_service: Service
) -> None:
    """Without Redis calls are refused with 503, without PostgreSQL nobody notices, and a killed instance costs the
    calls that it had in flight; every answer that arrived is in the table once, with what the client saw."""
    staying, dying = pair
    key = staying.credentials["api_key"]
    async with load(staying, key, clients=CLIENTS) as here, load(dying, key, clients=CLIENTS) as there:
        for _ in range(ROUNDS):
            await _both(here, there, "200", 50)
            redis_service.kill()
            await _both(here, there, "503 state_unavailable", 20)
            redis_service.start()
            await _ready_again(staying, dying)
            await _both(here, there, "200", 50)
            postgres_service.kill()
            await _both(here, there, "200", 200)
            postgres_service.start()
            await _ready_again(staying, dying)
            before = here.statuses.copy()
            await asyncio.to_thread(_kill_instance, dying)
            await reach(here, "200", 100)
            assert here.statuses.keys() == before.keys(), "the other instance noticed"
            await asyncio.to_thread(dying.start)
            await _ready_again(staying, dying)
            await _both(here, there, "200", 50)
    assert set(here.statuses) == {"200", "503 state_unavailable"}
    assert set(there.statuses) <= {
        "200",
        "503 state_unavailable",
        "503 unavailable",
        "broken",
        "200 with an error event",
    }
    both = Seen(statuses=Counter(here.statuses + there.statuses), whole=here.whole | there.whole)
    await all_recorded(both, postgres_service)


def _kill_instance(server: Server) -> None:
    """The supervisor and, by it, all that belongs to it, at once."""
    assert server.process is not None
    os.kill(server.process.pid, signal.SIGKILL)
    server.process.wait()


async def _both(here: Seen, there: Seen, outcome: str, more: int) -> None:
    await asyncio.gather(reach(here, outcome, more), reach(there, outcome, more))


async def _ready_again(*servers: Server) -> None:
    for server in servers:
        await wait_until(partial(is_ready, server), "the instance is ready again", timeout_s=60)
