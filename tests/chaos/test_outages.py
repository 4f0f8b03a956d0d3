"""One failing part degrades a named thing and nothing else, and all is well again by itself when it is back."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import httpx
import pytest

from modelport.catalog.defaults import default_models
from tests.chaos.fleet import (
    SANDBOX,
    Seen,
    all_recorded,
    answers,
    ask,
    chat,
    is_ready,
    load,
    manage,
    new_key,
    reach,
    ready,
    recorded,
)
from tests.services import Service
from tests.serving import Server
from tests.waiting import wait_until

# A hang is what is looked for: a second for Redis to answer, as much again for a busy machine, and some.
PROMPT_S = 10.0
CLIENTS = 8


@pytest.fixture
def server(tmp_path: Path, redis_service: Service, postgres_service: Service) -> Iterator[Server]:
    """Two workers on a PostgreSQL and a Redis that the test may stop."""
    environment = {"MODELPORT_DATABASE__URL": postgres_service.url, "MODELPORT_STATE__URL": redis_service.url}
    server = Server(tmp_path, config=SANDBOX, env=environment, workers=2).start()
    yield server
    server.kill()


@pytest.mark.parametrize("how", ["pause", "kill"])
async def test_without_redis_calls_are_refused_at_once_and_pass_again_when_it_is_back(
    server: Server, redis_service: Service, postgres_service: Service, how: str
) -> None:
    key = server.credentials["api_key"]
    async with load(server, key, clients=CLIENTS) as seen:
        await reach(seen, "200", 50)
        (redis_service.pause if how == "pause" else redis_service.kill)()
        await reach(seen, "503 state_unavailable", 50)
        assert not await asyncio.to_thread(ready, server)
        assert (await asyncio.to_thread(server.get, "/health"))[1]["database"]["status"] == "ok"
        (redis_service.resume if how == "pause" else redis_service.start)()
        await wait_until(partial(is_ready, server), "the server is ready again")
        await reach(seen, "200", 50)
    assert set(seen.statuses) == {"200", "503 state_unavailable"}
    assert "" not in seen.retry_after
    assert seen.slowest_s < PROMPT_S
    await all_recorded(seen, postgres_service)


async def test_streams_in_flight_outlive_redis(server: Server, redis_service: Service) -> None:
    """What was let in runs to its end, and is metered, whatever becomes of the limits."""
    seen = Seen()
    async with httpx.AsyncClient(base_url=server.base_url, timeout=60) as http:
        text = "[[tokens:40]] [[per_token:50ms]]"
        key = server.credentials["api_key"]
        streams = [asyncio.create_task(chat(http, key, seen, text=text, stream=True)) for _ in range(CLIENTS)]
        await wait_until(partial(_in_flight, server, CLIENTS), "the streams have begun")
        redis_service.kill()
        assert await asyncio.gather(*streams) == ["200"] * CLIENTS
        redis_service.start()
        await wait_until(partial(is_ready, server), "the server is ready again")
    assert {tokens for _, tokens in seen.whole.values()} == {40}
    assert len(seen.whole) == CLIENTS


async def test_without_postgres_known_keys_are_served_and_metered(server: Server, postgres_service: Service) -> None:
    """Cached keys notice nothing; keys that no cache holds, and the management API, get a 503."""
    key, unknown = server.credentials["api_key"], await asyncio.to_thread(new_key, server)
    async with load(server, key, clients=CLIENTS) as seen:
        await reach(seen, "200", 100)
        postgres_service.kill()
        # More than two workers' batches: a full one must not be offered to the database again at every call.
        await reach(seen, "200", 1_500)
        assert server.log.count('"usage_not_committed"') < 100
        assert await asyncio.to_thread(ask, server, unknown) == (503, "unavailable", "1")
        assert await asyncio.to_thread(manage, server) == (503, "unavailable")
        assert await asyncio.to_thread(manage, server, "/v1/api_keys") == (503, "unavailable")
        assert not await asyncio.to_thread(ready, server)
        assert (await asyncio.to_thread(server.get, "/health"))[1]["state"]["status"] == "ok"
        await reach(seen, "200", 50)
        postgres_service.start()
        await wait_until(partial(is_ready, server), "the server is ready again")
        await reach(seen, "200", 50)
    assert set(seen.statuses) == {"200"}
    await all_recorded(seen, postgres_service)
    assert (await asyncio.to_thread(ask, server, unknown))[0] == 200


async def test_a_postgres_that_hangs_holds_nobody(server: Server, postgres_service: Service) -> None:
    """Its connections stay open and nothing is answered: the worst way for a database to be away."""
    key, unknown = server.credentials["api_key"], await asyncio.to_thread(new_key, server)
    async with load(server, key, clients=CLIENTS) as seen:
        await reach(seen, "200", 100)
        postgres_service.pause()
        await reach(seen, "200", 100)
        stranger = Seen()
        async with httpx.AsyncClient(base_url=server.base_url, timeout=60) as http:
            assert await chat(http, unknown, stranger, stream=False) == "503 unavailable"
        assert stranger.slowest_s < PROMPT_S
        assert await asyncio.to_thread(manage, server, "/v1/api_keys") == (503, "unavailable")
        await reach(seen, "200", 50)
        postgres_service.resume()
        await wait_until(partial(is_ready, server), "the server is ready again")
        await reach(seen, "200", 50)
    assert set(seen.statuses) == {"200"}
    await all_recorded(seen, postgres_service)


async def test_a_worker_that_dies_while_postgres_is_away_comes_back_with_it(
    server: Server, postgres_service: Service
) -> None:
    """The other worker goes on meanwhile, and what the dead one had not committed is brought home."""
    key = server.credentials["api_key"]
    async with load(server, key, clients=CLIENTS) as seen:
        await reach(seen, "200", 100)
        postgres_service.kill()
        await reach(seen, "200", 50)
        os.kill(server.workers()[0], signal.SIGKILL)
        await wait_until(lambda: server.log.count('"worker_died"') > 1, "a new worker can't start either")
        postgres_service.start()
        await wait_until(partial(is_ready, server), "the server is ready again")
        await wait_until(partial(_has_workers, server, 2), "the worker is replaced")
        await reach(seen, "200", 50)
    # The clients of the dead worker went to the other one, which may not have had their key in its cache.
    assert set(seen.statuses) <= {"200", "broken", "503 unavailable"}
    assert "Traceback" not in server.log
    await all_recorded(seen, postgres_service)


async def test_a_start_without_its_database_says_so(tmp_path: Path, postgres_service: Service) -> None:
    postgres_service.stop()
    server = Server(tmp_path, config=SANDBOX, env={"MODELPORT_DATABASE__URL": postgres_service.url})
    with pytest.raises(AssertionError, match="did not come up"):
        server.start()
    assert server.process is not None
    assert server.process.returncode not in (0, None)
    assert "database" in server.log
    assert "Traceback" not in server.log


async def test_a_start_without_redis_waits_for_it(
    tmp_path: Path, redis_service: Service, postgres_database: str
) -> None:
    """Not ready, and calls get 503, until Redis is there; then all is well without another start."""
    environment = {"MODELPORT_DATABASE__URL": postgres_database, "MODELPORT_STATE__URL": redis_service.url}
    with Server(tmp_path, config=SANDBOX, env=environment) as server:
        key = server.credentials["api_key"]
        server.stop()
        redis_service.kill()
        starting = asyncio.create_task(asyncio.to_thread(server.start))
        await wait_until(partial(_alive, server), "the server lives")
        assert await asyncio.to_thread(ask, server, key) == (503, "state_unavailable", "1")
        redis_service.start()
        await starting
        assert (await asyncio.to_thread(ask, server, key))[0] == 200


async def test_a_killed_worker_costs_its_own_calls_and_nothing_else(server: Server, postgres_service: Service) -> None:
    key = server.credentials["api_key"]
    workers = server.workers()
    async with load(server, key, clients=CLIENTS, text="[[tokens:20]] [[per_token:5ms]]") as seen:
        for number in range(3):
            await reach(seen, "200", 30)
            os.kill(server.workers()[number % 2], signal.SIGKILL)
            await wait_until(partial(_has_workers, server, 2), "the worker is replaced")
    assert set(seen.statuses) <= {"200", "broken"}
    # Each client can have had one call in flight at each kill.
    assert seen.statuses["broken"] <= CLIENTS * 3
    assert set(server.workers()) != set(workers)
    rows = await all_recorded(seen, postgres_service)
    died = [row for row in rows.values() if row == (0, 0)]
    assert len(died) <= CLIENTS * 3


async def test_sigterm_under_streams_loses_nothing(server: Server, postgres_service: Service) -> None:
    """Streams in flight end with [DONE]; whoever comes later is refused; the exit code is 0."""
    assert server.process is not None
    seen, key = Seen(), server.credentials["api_key"]
    async with httpx.AsyncClient(base_url=server.base_url, timeout=60) as http:
        text = "[[tokens:40]] [[per_token:50ms]]"
        streams = [asyncio.create_task(chat(http, key, seen, text=text, stream=True)) for _ in range(CLIENTS)]
        await wait_until(partial(_in_flight, server, CLIENTS), "the streams have begun")
        server.process.terminate()
        await wait_until(partial(_refuses, server), "newcomers are refused")
        assert await asyncio.gather(*streams) == ["200"] * CLIENTS
    assert await asyncio.to_thread(server.process.wait, 60) == 0
    rows = await recorded(postgres_service)
    assert {id_: rows.get(id_) for id_ in seen.whole} == seen.whole
    assert len(rows) == len(seen.whole) == CLIENTS
    assert list((server.data_dir / "journal").iterdir()) == [], "everything was committed before the end"


async def test_sighup_under_load_loses_nothing(server: Server, postgres_service: Service) -> None:
    assert server.process is not None
    before = set(server.workers())
    async with load(
        server, server.credentials["api_key"], clients=CLIENTS, text="[[tokens:9]] [[per_token:5ms]]"
    ) as seen:
        await reach(seen, "200", 30)
        server.process.send_signal(signal.SIGHUP)
        await wait_until(lambda: "every worker is new" in server.log, "the workers are exchanged", timeout_s=120)
        await reach(seen, "200", 30)
    assert set(seen.statuses) == {"200"}
    assert before.isdisjoint(server.workers())
    await all_recorded(seen, postgres_service)


async def test_a_killed_engine_costs_the_answers_it_was_writing_and_is_back_in_seconds(tmp_path: Path) -> None:
    """Streams end with an error event, other calls get 502 or 503, and nobody waits for an engine that is gone."""
    row = next(row for row in default_models() if row.backend == "llamacpp")
    config = f"default_models = false\n[[models]]\nid = '{row.id}'\nbackend = 'llamacpp'\nsource = '{row.source}'\n"
    config += "max_output_tokens = 200\n"
    text = "Tell me a long story about a fox and a river."
    with Server(tmp_path, config=config) as server:
        key, engine = server.credentials["api_key"], _engine(server)
        seen = Seen()
        async with httpx.AsyncClient(base_url=server.base_url, timeout=60) as http:
            call = partial(chat, http, key, seen, text=text, model=row.id)
            calls = [asyncio.create_task(call(stream=number % 2 == 0)) for number in range(4)]
            await wait_until(partial(_in_flight, server, 4), "the calls are on their way")
            os.kill(engine, signal.SIGKILL)
            outcomes = set(await asyncio.gather(*calls))
            assert outcomes <= {"200", "200 with an error event", "502 upstream_failed", "503 model_loading"}
            assert outcomes != {"200"}

            async def answers() -> bool:
                return await call(stream=False) == "200"

            await wait_until(answers, "the engine is back")
        assert _engine(server) != engine
        assert set(seen.statuses) <= {"200", "200 with an error event", "502 upstream_failed", "503 model_loading"}


def _engine(server: Server) -> int:
    """The process id of the one engine."""
    (pid,) = (pid for pid in server.workers() if b"llamacpp" in Path(f"/proc/{pid}/cmdline").read_bytes())
    return pid


async def _alive(server: Server) -> bool:
    return await asyncio.to_thread(answers, lambda server: server.get("/livez")[0] == 200, server)


async def _refuses(server: Server) -> bool:
    return not await is_ready(server)


async def _in_flight(server: Server, calls: int) -> bool:
    status, _, raw = await asyncio.to_thread(server.request, "GET", "/metrics")
    lines = [line for line in raw.decode().splitlines() if line.startswith("modelport_calls_in_flight")]
    return status == 200 and sum(float(line.rpartition(" ")[2]) for line in lines) == calls


def _has_workers(server: Server, count: int) -> bool:
    return len(server.workers()) == count and server.log.count('"worker_died"') > 0
