"""What a route promises beyond the tour: times at local engines, fallbacks, rivals that fail, drains that end."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from typing import Any

import pytest

from tests.problems import check, check_end
from tests.rawhttp import Answer
from tests.scripted_upstream import ScriptedUpstream
from tests.serving import Server
from tests.waiting import wait_until

CONFIG = """
default_models = false
[[upstreams]]
name = "far"
base_url = "{url}"
breaker.enabled = false
[[models]]
id = "spare"
backend = "sandbox"
[[models]]
id = "images"
kind = "image"
targets = [{{ upstream = "far", model = "ok" }}]
[[models]]
id = "absent"
backend = "llamacpp"
source = "/nowhere/model.gguf"
fallbacks = ["images", "spare"]
[[models]]
id = "hasty"
backend = "sandbox"
fallbacks = ["spare-too"]
route.timeouts = {{ first_token_s = 0.1, answer_s = 0.1, total_s = 1 }}
[[models]]
id = "spare-too"
targets = [{{ upstream = "far", model = "ok" }}]
[[models]]
id = "limited"
targets = [{{ upstream = "far", model = "limited:1" }}]
route = {{ fallbacks = {{ rate_limit = ["spare"] }}, retry = {{ attempts = 1 }} }}
[[models]]
id = "patient"
targets = [{{ upstream = "far", model = "limited:1" }}]
route.retry = {{ attempts = 2, budget_s = 30 }}
[[models]]
id = "strict"
targets = [{{ upstream = "far", model = "slow:30" }}]
route = {{ overrides = ["strategy"], timeouts = {{ total_s = 0.3 }} }}
[[models]]
id = "rival-fails"
targets = [{{ upstream = "far", model = "slow:0.4" }}, {{ upstream = "far", model = "status:500" }}]
route = {{ strategy = "priority", hedge = {{ after_s = 0.05 }} }}
[[models]]
id = "both-fail"
targets = [{{ upstream = "far", model = "hang" }}, {{ upstream = "far", model = "status:500" }}]
fallbacks = ["spare"]
[models.route]
strategy = "priority"
hedge = {{ after_s = 0.05 }}
timeouts = {{ answer_s = 0.3, first_token_s = 0.3 }}
retry = {{ attempts = 2 }}
[[models]]
id = "cheap"
targets = [{{ upstream = "far", model = "ok" }}]
fallbacks = ["dear"]
[[models]]
id = "dear"
backend = "sandbox"
prices = {{ usd_per_request = "1" }}
[[models]]
id = "drains-a-while"
targets = [{{ upstream = "far", model = "drip" }}]
route = {{ disconnect = "drain", drain_s = 0.3 }}
"""


@pytest.fixture(scope="module")
def upstream() -> Iterator[ScriptedUpstream]:
    with ScriptedUpstream() as upstream:
        yield upstream


@pytest.fixture(scope="module")
def server(upstream: ScriptedUpstream, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    made = Server(tmp_path_factory.mktemp("policies"), config=CONFIG.format(url=upstream.url))
    made.start(models=False)
    yield made
    assert made.stop() == 0


def ask(server: Server, model: str, text: str = "Hello?", *, key: str = "", route: str = "", **members: Any) -> Answer:
    body = {"model": model, "messages": [{"role": "user", "content": text}], **members}
    headers = {"x-modelport-route": route} if route else {}
    key = key or server.credentials["api_key"]
    return Answer(*server.request("POST", "/v1/chat/completions", body=body, key=key, headers=headers))


def attempts(server: Server, answer: Answer) -> list[dict[str, Any]]:
    status, body = server.get(f"/v1/requests/{answer.headers['x-request-id']}", key=server.credentials["api_key"])
    assert status == 200, body
    return list(body["attempts"])


def test_a_local_model_that_is_not_there_has_a_fallback_that_can_do_the_same(server: Server) -> None:
    answer = ask(server, "absent")
    assert (answer.status, answer.headers["x-model-served"]) == (200, "spare")
    # Still looked for, or found to be missing: a model that is not there is passed over either way.
    assert answer.headers["x-fallback"] == "busy"


def test_a_key_gets_no_fallback_that_it_may_not_use(server: Server) -> None:
    body = {"name": "bound", "models": ["absent"]}
    made = server.request("POST", "/v1/api_keys", body=body, key=server.credentials["api_key"])
    answer = ask(server, "absent", key=json.loads(made[2])["key"])
    assert answer.status in (502, 503)


@pytest.mark.parametrize(("members", "text"), [({"stream": True}, "[[first_token:900ms]]"), ({}, "[[latency:900ms]]")])
def test_the_times_of_a_route_hold_at_local_engines(server: Server, members: dict[str, Any], text: str) -> None:
    answer = ask(server, "hasty", text, **members)
    assert (answer.status, answer.headers["x-fallback"]) == (200, "timeout")
    first, second = attempts(server, answer)
    assert (first["model"], first["error_code"], second["model"]) == ("hasty", "timeout", "spare-too")


def test_the_time_of_the_whole_call_is_not_begun_anew_by_an_attempt(server: Server) -> None:
    check(ask(server, "strict"), 504, "timeout")


def test_what_the_operator_keeps_is_not_changed_by_a_call(server: Server) -> None:
    answer = ask(server, "strict", route="total_s=0.1")
    check(answer, 400, "invalid_request_error")
    assert answer.json()["error"]["param"] == "x-modelport-route"


def test_a_call_may_be_less_patient_than_its_route(server: Server) -> None:
    check(ask(server, "hasty", "[[latency:90ms]]", route="total_s=0.01, fallback=?0"), 504, "timeout")


def test_a_rate_limit_has_its_own_fallback(server: Server) -> None:
    answer = ask(server, "limited")
    assert (answer.headers["x-model-served"], answer.headers["x-fallback"]) == ("spare", "rate_limit")


def test_an_upstreams_retry_after_is_waited_for_where_it_fits(server: Server) -> None:
    answer = ask(server, "patient")
    check(answer, 503, "overloaded")
    first, second = attempts(server, answer)
    waited_ms = _ms(second["started_at"]) - _ms(first["started_at"])
    assert waited_ms >= 1000
    early = ask(server, "patient", route="total_s=0.5")
    assert len(attempts(server, early)) == 1


def test_a_rival_that_fails_disturbs_nobody(server: Server) -> None:
    answer = ask(server, "rival-fails")
    assert answer.status == 200, answer.body
    first, second = attempts(server, answer)
    assert (first["status"], second["error_code"], second["why"]) == (200, "upstream_failed", "hedge")


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "json"])
def test_when_both_fail_a_fallback_answers(server: Server, stream: bool) -> None:
    answer = ask(server, "both-fail", stream=stream)
    assert answer.status == 200, answer.body
    assert answer.headers["x-model-served"] == "spare"
    if stream:
        assert check_end(answer) == "[DONE]"
    assert len(attempts(server, answer)) == 3


def test_a_budget_reserves_for_the_dearest_model_that_may_answer(server: Server) -> None:
    """Else a fallback could spend what nobody reserved."""
    operator = server.credentials["api_key"]
    made = json.loads(server.request("POST", "/v1/api_keys", body={"name": "poor"}, key=operator)[2])
    budget = {"scope": "key", "target": made["id"], "period": "total", "hard_limit_usd": "0.0001"}
    assert server.request("POST", "/v1/budgets", body=budget, key=operator)[0] == 201
    answer = ask(server, "cheap", key=made["key"])
    assert (answer.status, answer.code) == (429, "insufficient_quota")
    assert ask(server, "cheap", key=made["key"], route="fallback=?0").status == 200


async def test_a_drain_ends_when_its_time_is_over(server: Server, upstream: ScriptedUpstream) -> None:
    before = upstream.told()["hangups"]
    body = json.dumps({"model": "drains-a-while", "stream": True, "messages": [{"role": "user", "content": "x"}]})
    head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {server.credentials['api_key']}\r\n"
    with socket.create_connection(("127.0.0.1", server.port)) as client:
        client.sendall(f"{head}content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n{body}".encode())
        assert b"200 OK" in client.recv(1000)
    await wait_until(lambda: upstream.told()["hangups"] == before + 1, "the upstream was hung up on in the end")
    rows = server.get("/v1/usage?model=drains-a-while&group_by=status", key=server.credentials["api_key"])[1]["data"]
    assert [row["group"]["status"] for row in rows] == ["499"]


def _ms(at: str) -> float:
    seconds = at.rpartition(":")[2].removesuffix("Z")
    return (float(at[14:16]) * 60 + float(seconds)) * 1000
