"""Two instances on one PostgreSQL and one Redis: what is changed at one holds at the other."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.registry_calls import Operator, iris
from tests.serving import Server
from tests.waiting import wait_until

_CONFIG = """
default_models = false
[limits]
management_per_minute = 100000
[registry]
drain_s = 0.1
poll_interval_s = 0.3
"""


@pytest.fixture
def pair(tmp_path: Path, redis_url: str, postgres_database: str) -> Iterator[tuple[Server, Server]]:
    environment = {
        "MODELPORT_DATABASE__URL": postgres_database,
        "MODELPORT_STATE__URL": redis_url,
        "MODELPORT_STATE__NAMESPACE": tmp_path.name,
    }
    servers = []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        servers.append(Server(tmp_path / name, config=_CONFIG, env=environment).start())
    yield servers[0], servers[1]
    for server in servers:
        server.kill()


async def test_a_change_at_one_instance_holds_at_the_other(pair: tuple[Server, Server]) -> None:
    """A version is added, moved to, rolled back and removed at one, and the other one follows each time."""
    key = pair[0].credentials["api_key"]
    with Operator(pair[0], key=key) as here, Operator(pair[1], key=key) as there:
        await here.added("rose", iris("1"), kind="tabular")
        await wait_until(lambda: there.predict("rose").status_code == 200, "the other one serves it")
        await there.added("rose", iris("2"), aliases=["latest"])
        await wait_until(lambda: here.served("rose") == there.served("rose") == "2", "both have flipped")
        assert here.roll_back("rose", "latest", expected="2").status_code == 200
        await wait_until(lambda: there.served("rose") == "1", "the other one has rolled back")
        assert there.move("rose", "latest", "2", expected="2").status_code == 409
        assert there.http.delete("/v1/admin/models/rose/versions/2").status_code == 200
        await wait_until(lambda: here.predict("rose", model_version="2").status_code == 404, "it is gone here")
        assert here.add("rose", iris("1"), version="2").status_code == 409
