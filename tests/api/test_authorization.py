"""Who may do what: every route against every kind of key that must not pass, and the right answer for each.

A route that is not in the table fails `test_every_route_is_in_the_table`.
"""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, replace
from typing import Any

import pytest
import pytest_asyncio
from fastapi.routing import iter_route_contexts

from modelport.access.rules import SCOPES, make_key
from modelport.api.app import described
from modelport.api.routes import HOT
from modelport.db.engine import open_database
from tests.problems import check
from tests.rawhttp import Answer
from tests.serving import Server
from tests.store.world import Tenant, World, open_world

pytestmark = pytest.mark.asyncio(loop_scope="module")
CONFIG = """
default_models = false
[limits]
management_per_minute = 100000
[[models]]
id = "sandbox"
backend = "sandbox"
[[models]]
id = "vectors"
kind = "embedding"
backend = "sandbox"
[[models]]
id = "picture"
kind = "image"
backend = "sandbox"
"""
TENSORS = {"inputs": [{"name": "x", "shape": [1], "datatype": "FP32", "data": [1]}]}
CHAT = {"model": "sandbox", "messages": [{"role": "user", "content": "[[tokens:1]]"}]}


# Each target has one budget, so each call of the example names a target of its own.
BUDGET = {"scope": "tag", "target": "example={fresh}", "period": "day", "hard_limit_usd": "1.00"}
EXPERIMENT = {
    "name": "example",
    "model": "sandbox",
    "variants": [{"name": "a", "model": "sandbox@1", "weight": 1}, {"name": "b", "model": "sandbox@latest"}],
}
UNKNOWN = {"experiment": "exp_x", "key": "key_x", "call": "req_x", "budget": "budget_x", "new_budget": "budget_x"}
_fresh = itertools.count()


class Names(dict[str, str]):
    """What Alice owns, for the paths of the table; a `new_budget` is made whenever it is named."""

    def __init__(self, server: Server, alice: Tenant) -> None:
        super().__init__()
        self._ask = lambda path, body: Answer(*server.request("POST", path, body=body, key=alice.secret))
        self._ask_for = lambda path: Answer(*server.request("GET", path, key=alice.secret))
        self["key"] = self._ask("/v1/api_keys", {"name": "hers"}).json()["id"]
        self["call"] = self._ask("/v1/chat/completions", CHAT).headers["x-request-id"]
        self["budget"] = self["new_budget"]
        self["experiment"] = self._experiment()

    def _experiment(self) -> str:
        known = json.loads(self._ask_for("/v1/experiments").body)["data"]
        made: str = known[0]["id"] if known else self._ask("/v1/experiments", EXPERIMENT).json()["id"]
        return made

    def __missing__(self, name: str) -> str:
        assert name == "new_budget"
        made: str = self._ask("/v1/budgets", _with_fresh(BUDGET)).json()["id"]
        return made


def _with_fresh(body: Any) -> Any:
    return json.loads(json.dumps(body).replace("{fresh}", f"{os.getpid()}-{next(_fresh)}"))


@dataclass(frozen=True)
class Route:
    """What a route needs, an example of a call, and what those get who own nothing of what it names.

    `scope` None: open to everybody. `bound`: the status for a key that is bound to another model.
    """

    scope: str | None = None
    path: str = ""
    body: Any = None
    good: int = 200
    stranger: int = 200
    bound: int = 200


INFER = Route("inference", bound=404)
# What operators do to a model that there is not.
NOBODY = Route("admin", good=404, stranger=404, bound=404)
MODELS, SOME_TIME = "/v1/admin/models", "2026-01-01T00:00:00Z"
NOWHERE = {"id": "x", "source": "nowhere.onnx"}
TABLE: dict[tuple[str, str], Route] = {
    ("POST", "/v1/chat/completions"): replace(INFER, body=CHAT),
    ("POST", "/v1/completions"): replace(INFER, body={"model": "sandbox", "prompt": "x"}),
    ("POST", "/v1/messages"): replace(INFER, body={**CHAT, "max_tokens": 9}),
    ("POST", "/v1/messages/count_tokens"): replace(INFER, body=CHAT),
    ("POST", "/v1/responses"): replace(INFER, body={"model": "sandbox", "input": "[[tokens:1]]"}),
    ("POST", "/v1/responses/input_tokens"): replace(INFER, body={"model": "sandbox", "input": "x"}),
    ("POST", "/v1/embeddings"): replace(INFER, body={"model": "vectors", "input": "x"}),
    ("POST", "/v1/predict"): replace(INFER, body={"model": "picture", "inputs": ["x"]}),
    ("POST", "/v1/predict/stream"): replace(INFER, body={"model": "picture", "inputs": ["x"]}),
    ("POST", "/v1/images/classify"): replace(INFER, body={"model": "picture", "image": "eA=="}),
    ("POST", "/v2/predict"): replace(INFER, body={"model": "picture", "inputs": ["x"]}),
    ("POST", "/v2/models/{model}/infer"): replace(INFER, path="/v2/models/picture/infer", body=TENSORS),
    ("POST", "/v2/models/{model}/versions/{version}/infer"): replace(
        INFER, path="/v2/models/picture/versions/1/infer", body=TENSORS
    ),
    ("GET", "/v2/models/{model_path:path}"): replace(INFER, path="/v2/models/picture/versions/1"),
    ("GET", "/v2/models/{model_path:path}/ready"): replace(INFER, path="/v2/models/picture/ready"),
    ("GET", "/v1/ws"): Route("inference", good=426, stranger=426, bound=426),
    ("GET", "/v2"): Route(),
    ("GET", "/v2/health/live"): Route(),
    ("GET", "/v2/health/ready"): Route(),
    ("GET", "/v1/models"): Route("models:read"),
    ("GET", "/v1/models/{model_id:path}"): Route("models:read", "/v1/models/sandbox", bound=404),
    ("GET", "/v1/models/{model_id:path}/versions"): Route("models:read", "/v1/models/sandbox/versions", bound=404),
    ("GET", "/v1/deprecations"): Route("models:read"),
    ("POST", "/v1/api_keys"): Route("keys", body={"name": "x", "scopes": ["keys"]}, good=201, stranger=201, bound=201),
    ("GET", "/v1/api_keys"): Route("keys"),
    ("GET", "/v1/api_keys/{key_id}"): Route("keys", "/v1/api_keys/{key}", stranger=404),
    ("PATCH", "/v1/api_keys/{key_id}"): Route("keys", "/v1/api_keys/{key}", {"name": "y"}, stranger=404, bound=403),
    ("DELETE", "/v1/api_keys/{key_id}"): Route("keys", "/v1/api_keys/{key}", stranger=404),
    ("GET", "/v1/usage"): Route("usage:read"),
    ("GET", "/v1/requests/{call_id}"): Route("usage:read", "/v1/requests/{call}", stranger=404),
    ("GET", "/v1/admin/circuits"): Route("admin"),
    ("GET", "/v1/admin/slo"): Route("admin"),
    ("GET", MODELS): Route("admin"),
    ("POST", MODELS): replace(NOBODY, path=MODELS, body=NOWHERE, good=400, stranger=400, bound=400),
    **{
        (method, f"{MODELS}/{{model_id:path}}{rest}"): replace(NOBODY, path=f"{MODELS}/nobody{named}", body=body)
        for method, rest, named, body in (
            ("GET", "", "", None),
            ("DELETE", "", "", None),
            ("GET", "/versions/{version}", "/versions/1", None),
            ("DELETE", "/versions/{version}", "/versions/1", None),
            ("PUT", "/versions/{version}/deprecation", "/versions/1/deprecation", {"deprecated_at": SOME_TIME}),
            ("DELETE", "/versions/{version}/deprecation", "/versions/1/deprecation", None),
            ("PUT", "/aliases/{alias}", "/aliases/x", {"version": "1"}),
            ("DELETE", "/aliases/{alias}", "/aliases/x", None),
            ("POST", "/aliases/{alias}/rollback", "/aliases/x/rollback", None),
        )
    },
    ("GET", "/v1/metrics"): Route("admin"),
    ("POST", "/v1/budgets"): Route("billing", body=BUDGET, good=201, stranger=201, bound=201),
    ("GET", "/v1/budgets"): Route("billing"),
    ("GET", "/v1/budgets/{budget_id}"): Route("billing", "/v1/budgets/{budget}", stranger=404),
    ("PATCH", "/v1/budgets/{budget_id}"): Route(
        "billing", "/v1/budgets/{budget}", {"hard_limit_usd": "2"}, stranger=404
    ),
    ("DELETE", "/v1/budgets/{budget_id}"): Route("billing", "/v1/budgets/{new_budget}", stranger=404),
    ("POST", "/v1/experiments"): Route("experiments", body={}, good=400, stranger=400, bound=400),
    ("GET", "/v1/experiments"): Route("experiments"),
    ("GET", "/v1/experiments/{experiment_id}"): Route("experiments", "/v1/experiments/{experiment}", stranger=404),
    ("PATCH", "/v1/experiments/{experiment_id}"): Route(
        "experiments", "/v1/experiments/{experiment}", {"weights": {"a": 2}}, stranger=404
    ),
    ("GET", "/v1/experiments/{experiment_id}/results"): Route(
        "experiments", "/v1/experiments/{experiment}/results", stranger=404
    ),
    # Alice is no operator, and learns that before whether there is such an experiment.
    ("POST", "/v1/experiments/{experiment_id}/promote"): Route(
        "experiments", "/v1/experiments/{experiment}/promote", {}, good=403, stranger=403, bound=403
    ),
    ("POST", "/v1/feedback"): Route("experiments", body={"request_id": "{call}", "score": 1}, stranger=404),
    ("GET", "/v1/limits"): Route("billing"),
    ("GET", "/errors/{code}"): Route(None, "/errors/timeout"),
    **{("GET", path): Route() for path in ("/livez", "/readyz", "/health", "/metrics", "/llms.txt", "/openapi.json")},
    **{("GET", path): Route() for path in ("/docs", "/redoc", "/static/redoc.js")},
}
CLOSED = [row for row, route in TABLE.items() if route.scope is not None]
OPEN = [row for row, route in TABLE.items() if route.scope is None]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with Server(tmp_path_factory.mktemp("authorization"), config=CONFIG) as server:
        yield server


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def world(server: Server) -> AsyncIterator[World]:
    db = open_database("", data_dir=server.data_dir, pool_size=1)
    async with open_world(db) as made:
        yield made
    await db.close()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def alice(server: Server, world: World) -> Tenant:
    caller = await world.caller(server.credentials["api_key"])
    return await world.key_of(caller.organization_id, caller.project_id)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def mallory(world: World) -> Tenant:
    return await world.tenant("Mallory")


@pytest.fixture
def names(server: Server, alice: Tenant) -> Iterator[Names]:
    names = Names(server, alice)
    yield names
    # An organization has a hundred budgets at most.
    server.request("DELETE", f"/v1/budgets/{names['budget']}", key=alice.secret)


def ask(server: Server, row: tuple[str, str], names: dict[str, str], *, key: str = "", **headers: str) -> Answer:
    route = TABLE[row]
    path = (route.path or row[1]).format_map(names)
    body = _with_fresh(route.body)
    if isinstance(body, dict) and body.get("request_id") == "{call}":
        body["request_id"] = names.get("call", "req_x")
    return Answer(*server.request(row[0], path, body=body, key=key, headers=headers))


async def test_every_route_is_in_the_table() -> None:
    served = {
        (method, str(ctx.path)) for ctx in iter_route_contexts(described().routes) for method in ctx.methods or ()
    }
    assert served | {("POST", route.path) for route, _ in HOT} == set(TABLE)
    assert {route.scope for route in TABLE.values()} - {None} <= set(SCOPES)


@pytest.mark.parametrize("row", TABLE, ids=" ".join)
async def test_a_good_key_passes(server: Server, alice: Tenant, names: dict[str, str], row: tuple[str, str]) -> None:
    assert ask(server, row, names, key=alice.secret).status == TABLE[row].good
    assert ask(server, row, names, **{"x-api-key": alice.secret}).status == TABLE[row].good


@pytest.mark.parametrize("row", OPEN, ids=" ".join)
async def test_what_is_open_asks_for_no_key_and_looks_at_none(server: Server, row: tuple[str, str]) -> None:
    for key in ("", "nonsense", make_key("live")):
        # The document tells each caller of the models that are open to them, so it looks at a key that is sent.
        expected = 401 if key and row == ("GET", "/openapi.json") else 200
        assert ask(server, row, {}, key=key).status == expected


WRONG = {
    "none": {},
    "empty": {"authorization": ""},
    "empty bearer": {"authorization": "Bearer "},
    "another scheme": {"authorization": "Basic bXA6bXA="},
    "no key": {"authorization": "Bearer nonsense"},
    "long": {"authorization": "Bearer " + "mp_live_" * 1000},
    "not ascii": {"x-api-key": "mp_live_" + "é" * 46},
    "unknown": {"authorization": f"Bearer {make_key('live')}"},
    "wrong checksum": {"x-api-key": make_key("live")[:-1] + "!"},
    "two": {"authorization": f"Bearer {make_key('live')}", "x-api-key": make_key("live")},
}


@pytest.mark.parametrize("row", CLOSED, ids=" ".join)
@pytest.mark.parametrize("kind", WRONG)
async def test_no_key_and_what_is_none_are_refused(server: Server, row: tuple[str, str], kind: str) -> None:
    answer = ask(server, row, UNKNOWN, **WRONG[kind])
    check(answer, 401, "invalid_api_key")
    for value in WRONG[kind].values():
        assert len(value) < 20 or value.removeprefix("Bearer ") not in answer.body.decode()


@pytest.mark.parametrize("row", CLOSED, ids=" ".join)
async def test_a_key_that_ended_is_refused(
    server: Server, world: World, alice: Tenant, names: dict[str, str], row: tuple[str, str]
) -> None:
    expired = await world.key_of(alice.organization_id, alice.project_id, expires_us=1)
    check(ask(server, row, names, key=expired.secret), 401, "invalid_api_key")
    revoked = await world.key_of(alice.organization_id, alice.project_id)
    assert ask(server, row, names, key=revoked.secret).status == TABLE[row].good
    assert server.request("DELETE", f"/v1/api_keys/{revoked.key.id}", key=alice.secret)[0] == 200
    check(ask(server, row, names, key=revoked.secret), 401, "invalid_api_key")
    mistyped = alice.secret[:20] + ("A" if alice.secret[20] != "A" else "B") + alice.secret[21:]
    check(ask(server, row, names, key=mistyped), 401, "invalid_api_key")


@pytest.mark.parametrize("row", CLOSED, ids=" ".join)
async def test_every_other_scope_is_not_enough(
    server: Server, world: World, alice: Tenant, names: dict[str, str], row: tuple[str, str]
) -> None:
    scope = TABLE[row].scope
    without = await world.key_of(alice.organization_id, alice.project_id, scopes=frozenset(SCOPES) - {scope})
    answer = ask(server, row, names, key=without.secret)
    check(answer, 403, "permission_denied")
    assert repr(scope) in answer.message
    assert scope is not None
    only = await world.key_of(alice.organization_id, alice.project_id, scopes=frozenset({scope}))
    # Nobody changes a key that may do more than theirs.
    expected = 403 if row == ("PATCH", "/v1/api_keys/{key_id}") else TABLE[row].good
    assert ask(server, row, names, key=only.secret).status == expected


@pytest.mark.parametrize("row", CLOSED, ids=" ".join)
async def test_a_key_works_only_from_its_addresses(
    server: Server, world: World, alice: Tenant, names: dict[str, str], row: tuple[str, str]
) -> None:
    elsewhere = await world.key_of(alice.organization_id, alice.project_id, allowed_ips=("203.0.113.0/24",))
    forged = {"x-forwarded-for": "203.0.113.9", "forwarded": "for=203.0.113.9", "x-real-ip": "203.0.113.9"}
    for headers in ({}, forged):
        check(ask(server, row, names, key=elsewhere.secret, **headers), 403, "permission_denied")


@pytest.mark.parametrize("row", CLOSED, ids=" ".join)
async def test_a_key_bound_to_a_model_reaches_no_other(
    server: Server, world: World, alice: Tenant, names: dict[str, str], row: tuple[str, str]
) -> None:
    bound = await world.key_of(alice.organization_id, alice.project_id, models=frozenset({"another"}))
    answer = ask(server, row, names, key=bound.secret)
    assert answer.status == TABLE[row].bound
    if row == ("GET", "/v1/models"):
        assert answer.json()["data"] == []


@pytest.mark.parametrize("row", CLOSED, ids=" ".join)
async def test_mallory_reaches_nothing_of_alices(
    server: Server, alice: Tenant, mallory: Tenant, names: dict[str, str], row: tuple[str, str]
) -> None:
    answer = ask(server, row, names, key=mallory.secret)
    assert answer.status == TABLE[row].stranger
    text = answer.body.decode()
    for hers in (
        alice.organization_id,
        alice.project_id,
        alice.key.id,
        *(names.values() if answer.status < 400 else ()),
    ):
        assert hers not in text
    budget = Answer(*server.request("GET", f"/v1/budgets/{names['budget']}", key=alice.secret)).json()
    assert budget["hard_limit_usd"] == "1.00"
    assert Answer(*server.request("GET", f"/v1/api_keys/{names['key']}", key=alice.secret)).json()["name"] == "hers"
