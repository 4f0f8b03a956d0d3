"""Versions that change while calls are answered: no call fails, and no answer is by another version than it says."""

from __future__ import annotations

import asyncio
import os
import signal
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import pytest

from tests.campaign import rounds
from tests.registry_calls import ROW, Operator, iris, told_by
from tests.serving import Server
from tests.waiting import wait_until

_CONFIG = """
default_models = false
[registry]
drain_s = 0.2
[limits]
management_per_minute = 100000
"""
_CLIENTS = 6


@dataclass
class Load:
    """What came of the calls that ran meanwhile. `truth` says which probabilities each version gives."""

    truth: dict[str, tuple[float, ...]]
    versions: Counter[str] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)

    def note(self, answer: httpx.Response) -> None:
        if answer.status_code != 200:
            self.failures.append(f"{answer.status_code} {answer.text[:200]}")
            return
        content = answer.json()
        said = content["model_version"]
        self.versions[said] += 1
        if told_by(content) != self.truth[said]:
            self.failures.append(f"version {said} was reported, and another one answered")


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    with Server(tmp_path, config=_CONFIG, workers=2) as running:
        yield running


@pytest.fixture
async def operator(server: Server) -> AsyncIterator[Operator]:
    """Versions 1 and 2 of `flower` are there; both aliases mean 1."""
    with Operator(server) as operator:
        for version in ("1", "2"):
            await operator.added("flower", iris(version), version=version, kind="tabular")
        await _everywhere(operator, "2", model_version="2")
        yield operator


async def test_flips_under_load_fail_no_call_and_report_no_wrong_version(operator: Operator) -> None:
    """Each flip is either a move, or a rollback; some bring a new version first, some remove one that is left."""
    async with _load(operator) as load:
        for number in range(rounds(short=20, full=200)):
            now = operator.model("flower")
            latest = next(alias for alias in now["aliases"] if alias["alias"] == "latest")
            means = latest["pending"] or latest["version"]
            if number % 4 == 3:
                answer = await asyncio.to_thread(operator.roll_back, "flower", "latest", expected=means)
            elif number % 4 == 2:
                name = f"n{number}"
                load.truth[name] = load.truth["1"]
                await operator.added("flower", iris("1"), version=name)
                answer = await asyncio.to_thread(operator.move, "flower", "latest", name)
            else:
                target = "2" if means == "1" else "1"
                answer = await asyncio.to_thread(operator.move, "flower", "latest", target)
            assert answer.status_code == 200, answer.text
            seen = sum(load.versions.values())
            await wait_until(lambda seen=seen: sum(load.versions.values()) > seen + _CLIENTS, "calls went through")  # type: ignore[misc]
            for left in now["versions"]:
                if left["id"].startswith("n") and not left["aliases"]:
                    operator.http.delete(f"/v1/admin/models/flower/versions/{left['id']}")
    assert load.failures == []
    assert load.versions["1"]
    assert load.versions["2"]


async def test_a_version_that_cannot_be_loaded_leaves_the_old_one_serving(operator: Operator, tmp_path: Path) -> None:
    """The alias stays where it was, and the model says why. The bad version can be removed after."""
    bad = tmp_path / "bad.onnx"
    bad.write_bytes(b"\x08\x07not a model")
    async with _load(operator) as load:
        answer = operator.add("flower", bad, version="9", aliases=["latest"])
        assert answer.status_code == 201
        await wait_until(lambda: operator.version("flower", "9")["status"] == "failed", "it has failed")
        assert operator.served("flower") == "1"
        told = operator.http.get("/v1/models/flower").json()
        assert told["aliases"]["latest"] == "1"
        assert "flower@9" in told["pending"]["latest"]
        assert "could not be loaded" in told["pending"]["latest"]
    assert load.failures == []
    assert operator.http.delete("/v1/admin/models/flower/versions/9").status_code == 409
    assert operator.roll_back("flower", "latest").json()["version"] == "1"
    assert operator.http.delete("/v1/admin/models/flower/versions/9").status_code == 200
    assert operator.http.get("/v1/models/flower").json()["pending"] == {}


async def test_two_operators_flip_at_once(operator: Operator) -> None:
    """One of them wins, the other is told; never do both believe that they did it."""
    path = "/v1/admin/models/flower/aliases/latest"
    headers = dict(operator.http.headers)
    async with httpx.AsyncClient(base_url=operator.server.base_url, headers=headers, timeout=60) as http:
        for number in range(8):
            now, other = ("1", "2") if number % 2 == 0 else ("2", "1")
            answers = await asyncio.gather(
                *(http.put(path, json={"version": other, "expected": now}) for _ in range(4))
            )
            assert sorted(answer.status_code for answer in answers) == [200, 409, 409, 409]
    history = operator.model("flower")["aliases"][0]["history"]
    assert len(history) == 8


async def test_kill_nine_in_the_middle_of_a_flip(server: Server, operator: Operator) -> None:
    """What was committed holds after the restart; what was not never happened. Aliases and versions agree."""
    for round_ in range(rounds(short=2, full=20)):
        flips = asyncio.create_task(_flip_until_refused(operator.server, said := list[str]()))
        await wait_until(lambda said=said, most=round_: len(said) > 2 + most, "flips are answered")  # type: ignore[misc]
        await asyncio.to_thread(server.kill)
        attempted = await flips
        await asyncio.to_thread(server.start)
        told = operator.http.get("/v1/models/flower").json()
        # The last one that was answered, or the one that was under way.
        assert told["aliases"]["latest"] in (said[-1], attempted)
        assert operator.served("flower") == told["aliases"]["latest"]


async def test_a_killed_worker_comes_back_with_the_registry(server: Server, operator: Operator) -> None:
    """A worker that dies in the middle takes its own calls with it, and its successor knows what was added."""
    operator.move("flower", "latest", "2")
    before = server.workers()
    os.kill(before[0], signal.SIGKILL)
    await wait_until(lambda: bool(set(server.workers()) - set(before)), "another worker is there")
    await _everywhere(operator, "2")


async def test_new_workers_take_calls_when_their_models_are_loaded(operator: Operator) -> None:
    """An exchange of the workers under load fails no call: a successor does not answer that it is loading."""
    server = operator.server
    async with _load(operator) as load:
        for round_ in range(rounds(short=1, full=10)):
            os.kill(server.process.pid, signal.SIGHUP)  # type: ignore[union-attr]
            await wait_until(lambda most=round_: server.log.count("every worker is new") > most, "workers are new")  # type: ignore[misc]
        await asyncio.to_thread(operator.move, "flower", "latest", "2")
        await wait_until(lambda: load.versions["2"] > _CLIENTS, "the new ones answer")
    assert load.failures == []


async def _flip_until_refused(server: Server, said: list[str]) -> str:
    """Flip to and fro until the server is gone: what was answered goes into `said`, what was not is returned."""
    headers = {"Authorization": f"Bearer {server.credentials['api_key']}"}
    target = "1"
    async with httpx.AsyncClient(base_url=server.base_url, headers=headers, timeout=10) as http:
        with suppress(httpx.HTTPError):
            while True:
                target = "2" if target == "1" else "1"
                await http.put("/v1/admin/models/flower/aliases/latest", json={"version": target})
                said.append(target)
    return target


@asynccontextmanager
async def _load(operator: Operator) -> AsyncIterator[Load]:
    """Clients that predict one after the other, on both workers, until the block is left."""
    truth = {version: told_by(operator.predict("flower", model_version=version).json()) for version in ("1", "2")}
    assert truth["1"] != truth["2"]
    load, stop = Load(truth), asyncio.Event()

    async def client() -> None:
        # A connection of its own for each stretch of calls, so that both workers get some.
        while not stop.is_set():
            async with httpx.AsyncClient(base_url=operator.server.base_url, headers=operator.http.headers) as http:
                for _ in range(10):
                    load.note(await http.post("/v1/predict", json={"model": "flower", "inputs": [ROW]}, timeout=60))

    clients = [asyncio.create_task(client()) for _ in range(_CLIENTS)]
    try:
        yield load
    finally:
        stop.set()
        await asyncio.gather(*clients)


async def _everywhere(operator: Operator, version: str, **body: str) -> None:
    """Return when fresh connections, which any worker may take, are all answered by the version."""

    def all_of_them() -> bool:
        answers = []
        for _ in range(12):
            with httpx.Client(base_url=operator.server.base_url, headers=operator.http.headers, timeout=60) as http:
                answers.append(http.post("/v1/predict", json={"model": "flower", "inputs": [ROW], **body}))
        return all(answer.status_code == 200 and answer.json()["model_version"] == version for answer in answers)

    await wait_until(all_of_them, f"every worker answers with version {version}")
