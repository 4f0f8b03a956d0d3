"""API keys over HTTP: the published shapes, and an answer for everybody who asks for what isn't theirs."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

from modelport.db.engine import open_database
from tests.serving import Server
from tests.store.world import Tenant, World, open_world

CONFIG = """
default_models = false
[[models]]
id = "sandbox"
backend = "sandbox"
"""
SHAPE = {
    "id", "object", "name", "prefix", "last4", "mode", "scopes", "models", "model_versions", "limits", "allowed_ips",
    "expires_at", "created_at", "last_used_at", "revoked_at", "project_id",
}  # fmt: skip
ROUTES = [
    ("POST", "/v1/api_keys", {"name": "x"}),
    ("GET", "/v1/api_keys", None),
    ("GET", "/v1/api_keys/{id}", None),
    ("PATCH", "/v1/api_keys/{id}", {"name": "x"}),
    ("DELETE", "/v1/api_keys/{id}", None),
]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    made = Server(tmp_path_factory.mktemp("keys"), config=CONFIG).start()
    yield made
    made.stop()


@pytest.fixture
async def world(server: Server) -> AsyncIterator[World]:
    """Services beside the server, on its database, to make other tenants with."""
    db = open_database("", data_dir=server.data_dir, pool_size=1)
    async with open_world(db) as made:
        yield made
    await db.close()


@pytest.fixture
async def mallory(world: World) -> Tenant:
    return await world.tenant("Mallory")


def ask(server: Server, method: str, path: str, *, key: str, body: Any = None) -> tuple[int, dict[str, Any]]:
    status, _, answer = server.request(method, path, body=body, key=key)
    return status, json.loads(answer)


@pytest.fixture
def alice(server: Server) -> str:
    return server.credentials["api_key"]


def create(server: Server, key: str, **body: Any) -> dict[str, Any]:
    status, answer = ask(server, "POST", "/v1/api_keys", key=key, body={"name": "staging", **body})
    assert status == 201, answer
    return answer


def test_a_key_is_created_with_the_published_shape_and_works_at_once(server: Server, alice: str) -> None:
    made = create(
        server,
        alice,
        scopes=["keys", "models:read"],
        models=["sandbox"],
        limits={"requests_per_minute": 60},
        allowed_ips=["127.0.0.1"],
        expires_at="2099-01-01T00:00:00+01:00",
    )
    assert set(made) == SHAPE | {"key"}
    assert made["expires_at"] == "2098-12-31T23:00:00Z"
    assert made["limits"] == {"requests_per_minute": 60, "tokens_per_minute": None, "concurrent_calls": None}
    status, seen = ask(server, "GET", f"/v1/api_keys/{made['id']}", key=made["key"])
    assert status == 200
    assert set(seen) == SHAPE
    assert {**seen, "last_used_at": None} == {name: value for name, value in made.items() if name != "key"}


def test_keys_are_listed_in_pages(server: Server, alice: str) -> None:
    ids = [create(server, alice)["id"] for _ in range(3)]
    status, first = ask(server, "GET", "/v1/api_keys?limit=2", key=alice)
    assert status == 200
    assert (first["object"], first["has_more"]) == ("list", True)
    assert [first["first_id"], first["last_id"]] == [first["data"][0]["id"], first["data"][1]["id"]]
    _, second = ask(server, "GET", f"/v1/api_keys?limit=1&after={first['last_id']}", key=alice)
    assert [row["id"] for row in first["data"] + second["data"]] == ids[::-1]
    assert ask(server, "GET", "/v1/api_keys?limit=0", key=alice)[0] == 400


def test_a_change_names_what_is_different(server: Server, alice: str) -> None:
    made = create(server, alice, limits={"requests_per_minute": 60}, models=["sandbox"])
    path = f"/v1/api_keys/{made['id']}"
    status, changed = ask(server, "PATCH", path, key=alice, body={"name": "production", "models": None})
    assert status == 200
    expected = {**made, "name": "production", "models": None}
    assert changed == {name: value for name, value in expected.items() if name != "key"}
    for wrong in ({"name": None}, {"scopes": None}, {"mode": "live"}, {"limits": {"requests_per_minute": "60"}}):
        assert ask(server, "PATCH", path, key=alice, body=wrong)[0] == 400


def test_a_revoked_key_is_refused_at_its_next_call_and_stays_in_the_list(server: Server, alice: str) -> None:
    made = create(server, alice, scopes=["keys"])
    path = f"/v1/api_keys/{made['id']}"
    assert ask(server, "GET", path, key=made["key"])[0] == 200
    status, revoked = ask(server, "DELETE", path, key=alice)
    assert (status, revoked["revoked_at"] is not None) == (200, True)
    status, refused = ask(server, "GET", path, key=made["key"])
    assert (status, refused["error"]["code"]) == (401, "invalid_api_key")
    assert made["key"] not in json.dumps(refused)
    assert ask(server, "GET", path, key=alice)[1] == revoked
    assert ask(server, "PATCH", path, key=alice, body={"name": "back"})[0] == 409


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"name": ""},
        {"name": "x", "scopes": ["everything"]},
        {"name": "x", "scopes": []},
        {"name": "x", "colour": "red"},
        {"name": "x", "limits": {"requests_per_minute": True}},
        {"name": "x", "limits": {"requests_per_minute": -1}},
        {"name": "x", "limits": {"per_hour": 1}},
        {"name": "x", "expires_at": "2001-01-01T00:00:00Z"},
        {"name": "x", "expires_at": "2099-01-01T00:00:00"},
        {"name": "x", "allowed_ips": ["everywhere"]},
        {"name": "x", "operator": True},
    ],
)
def test_what_makes_no_sense_is_a_bad_request(server: Server, alice: str, body: dict[str, Any]) -> None:
    status, answer = ask(server, "POST", "/v1/api_keys", key=alice, body=body)
    assert (status, answer["error"]["code"]) == (400, "invalid_request_error")


def test_a_weaker_key_gives_no_more_than_it_has(server: Server, alice: str) -> None:
    weak = create(server, alice, scopes=["keys"], limits={"requests_per_minute": 5})
    for more in ({"scopes": ["keys", "billing"]}, {"scopes": ["keys"], "limits": {"requests_per_minute": 6}}):
        status, answer = ask(server, "POST", "/v1/api_keys", key=weak["key"], body={"name": "x", **more})
        assert (status, answer["error"]["code"]) == (403, "permission_denied")
    status, answer = ask(
        server, "PATCH", f"/v1/api_keys/{weak['id']}", key=weak["key"], body={"scopes": ["keys", "inference"]}
    )
    assert (status, answer["error"]["code"]) == (403, "permission_denied")
    inherited = create(server, weak["key"], scopes=["keys"])
    assert inherited["limits"]["requests_per_minute"] == 5


@pytest.mark.parametrize(("method", "path", "body"), ROUTES)
def test_every_route_wants_the_scope(server: Server, alice: str, method: str, path: str, body: Any) -> None:
    without = create(server, alice, scopes=["inference"])
    status, answer = ask(server, method, path.format(id=without["id"]), key=without["key"], body=body)
    assert (status, answer["error"]["code"]) == (403, "permission_denied")
    assert "'keys'" in answer["error"]["message"]


@pytest.mark.parametrize(("method", "path", "body"), [route for route in ROUTES if "{id}" in route[1]])
async def test_mallory_finds_nothing_of_alices(
    server: Server, alice: str, mallory: Tenant, method: str, path: str, body: Any
) -> None:
    hers = create(server, alice)
    status, answer = ask(server, method, path.format(id=hers["id"]), key=mallory.secret, body=body)
    assert (status, answer["error"]["code"]) == (404, "not_found")
    assert "revoked" not in json.dumps(answer)
    assert ask(server, "GET", f"/v1/api_keys/{hers['id']}", key=alice)[1]["revoked_at"] is None


async def test_mallorys_list_holds_only_her_own(server: Server, alice: str, mallory: Tenant) -> None:
    create(server, alice)
    status, answer = ask(server, "GET", "/v1/api_keys?limit=100", key=mallory.secret)
    assert status == 200
    assert [row["id"] for row in answer["data"]] == [mallory.key.id]


async def test_mallory_makes_no_key_in_alices_project(server: Server, alice: str, mallory: Tenant) -> None:
    body = {"name": "x", "project_id": create(server, alice)["project_id"]}
    assert ask(server, "POST", "/v1/api_keys", key=mallory.secret, body=body)[0] == 404


def test_answers_tell_what_is_left_of_the_management_limit(server: Server, alice: str) -> None:
    _, headers, _ = server.request("GET", "/v1/api_keys", key=alice)
    assert headers["ratelimit-policy"] == '"management";q=600;w=60'
    assert headers["x-ratelimit-limit"] == "600"
