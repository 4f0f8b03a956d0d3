"""A change of a key holds at its very next call, on every worker of the machine, however warm their caches are."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.rawhttp import Answer, RawClient, chat, request
from tests.serving import Server
from tests.waiting import wait_until

WORKERS = 4
CONFIG = """
default_models = false
[[models]]
id = "sandbox"
backend = "sandbox"
[[models]]
id = "other"
backend = "sandbox"
[access]
touch_interval_s = 0.2
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with Server(tmp_path_factory.mktemp("live"), config=CONFIG, workers=WORKERS) as server:
        yield server


@pytest.fixture(scope="module")
def lines(server: Server) -> Iterator[list[RawClient]]:
    """One open connection to each worker."""
    found: dict[int, RawClient] = {}
    spare: list[RawClient] = []
    while len(found) < WORKERS:
        client = RawClient(server.port)
        client.send(request("GET", "/livez")).answer()
        (spare if found.setdefault(worker_of(server, client), client) is not client else []).append(client)
        assert len(spare) < 500
    for client in spare:
        client.close()
    yield list(found.values())
    for client in found.values():
        client.close()


def worker_of(server: Server, client: RawClient) -> int:
    """Whose file descriptor the other end of this connection is."""
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        columns = line.split()
        ports = [int(columns[n].partition(":")[2], 16) for n in (1, 2)]
        if ports == [server.port, client.local_port]:
            for pid in server.workers():
                for fd in Path(f"/proc/{pid}/fd").iterdir():
                    if fd.is_symlink() and str(fd.readlink()) == f"socket:[{columns[9]}]":
                        return pid
    raise AssertionError("nobody holds the connection")


def manage(server: Server, method: str, path: str, body: Any = None) -> dict[str, Any]:
    key = server.credentials["api_key"]
    answer = Answer(*server.request(method, path, body=body, key=key))
    assert answer.status < 300, answer.body
    found: dict[str, Any] = answer.json()
    return found


def create(server: Server, **body: Any) -> dict[str, Any]:
    return manage(server, "POST", "/v1/api_keys", {"name": "live", "scopes": ["inference", "models:read"], **body})


def warm(lines: list[RawClient], key: str) -> None:
    for line in lines:
        assert statuses(line, key) == (200, 200)


def statuses(line: RawClient, key: str) -> tuple[int, int]:
    """What a call and a management request on this connection get."""
    models = request("GET", "/v1/models", f"authorization: Bearer {key}")
    return line.send(chat(key, "[[tokens:1]]")).answer().status, line.send(models).answer().status


def test_a_revoked_key_is_refused_by_the_very_next_call_on_every_worker(server: Server, lines: list[RawClient]) -> None:
    for first in range(20):
        made = create(server)
        warm(lines, made["key"])
        manage(server, "DELETE", f"/v1/api_keys/{made['id']}")
        for offset in range(WORKERS):
            assert statuses(lines[(first + offset) % WORKERS], made["key"]) == (401, 401)


def test_a_scope_taken_away_is_gone_on_every_worker(server: Server, lines: list[RawClient]) -> None:
    made = create(server)
    warm(lines, made["key"])
    manage(server, "PATCH", f"/v1/api_keys/{made['id']}", {"scopes": ["models:read"]})
    assert [statuses(line, made["key"]) for line in lines] == [(403, 200)] * WORKERS


def test_a_model_and_an_address_taken_away_are_gone_on_every_worker(server: Server, lines: list[RawClient]) -> None:
    made = create(server)
    warm(lines, made["key"])
    manage(server, "PATCH", f"/v1/api_keys/{made['id']}", {"models": ["other"]})
    assert [statuses(line, made["key"]) for line in lines] == [(404, 200)] * WORKERS
    manage(server, "PATCH", f"/v1/api_keys/{made['id']}", {"allowed_ips": ["203.0.113.7"]})
    assert [statuses(line, made["key"]) for line in lines] == [(403, 403)] * WORKERS


def test_a_new_limit_holds_at_once_and_for_all_workers_together(server: Server, lines: list[RawClient]) -> None:
    made = create(server)
    warm(lines, made["key"])
    manage(server, "PATCH", f"/v1/api_keys/{made['id']}", {"limits": {"requests_per_minute": 6}})
    got = [line.send(chat(made["key"], "[[tokens:1]]")).answer().status for _ in range(3) for line in lines]
    assert got == [200] * 6 + [429] * 6
    manage(server, "PATCH", f"/v1/api_keys/{made['id']}", {"limits": None})
    warm(lines, made["key"])


def test_a_new_name_is_seen_and_costs_no_call(server: Server, lines: list[RawClient]) -> None:
    made = create(server)
    warm(lines, made["key"])
    manage(server, "PATCH", f"/v1/api_keys/{made['id']}", {"name": "renamed"})
    warm(lines, made["key"])
    assert manage(server, "GET", f"/v1/api_keys/{made['id']}")["name"] == "renamed"


async def test_the_last_use_on_any_worker_appears(server: Server, lines: list[RawClient]) -> None:
    for line in lines:
        made = create(server)
        assert made["last_used_at"] is None
        assert statuses(line, made["key"]) == (200, 200)
        path = f"/v1/api_keys/{made['id']}"
        await wait_until(lambda: manage(server, "GET", path)["last_used_at"] is not None, "the use is written")  # noqa: B023
