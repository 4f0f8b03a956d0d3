"""Routing: more reliable than the servers behind it. Several targets, retries, fallbacks, breakers, second attempts."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from decimal import Decimal
from typing import Any

import httpx
import pytest
from openai import OpenAI

from tests.scripted_upstream import USAGE, ScriptedUpstream
from tests.serving import Server
from tests.waiting import wait_until

CONFIG = """
default_models = false

[[upstreams]]
name = "first"
base_url = "{first}"
first_token_timeout_s = 1
breaker = {{ min_calls = 4, open_s = 0.5, probes = 1 }}

[[upstreams]]
name = "second"
base_url = "{second}"

[[models]]
id = "both"
targets = [{{ upstream = "first", model = "ok" }}, {{ upstream = "second", model = "ok" }}]
route.strategy = "priority"
prices = {{ input_usd_per_mtok = "1", output_usd_per_mtok = "2" }}

[[models]]
id = "small"
targets = [{{ upstream = "first", model = "context" }}]
fallbacks = ["spare"]
route.fallbacks.context = ["large"]

[[models]]
id = "large"
targets = [{{ upstream = "second", model = "ok" }}]
prices = {{ input_usd_per_mtok = "10", output_usd_per_mtok = "20" }}

[[models]]
id = "broken"
targets = [{{ upstream = "first", model = "status:500" }}]
fallbacks = ["spare"]
route.retry = {{ attempts = 2, backoff_first_s = 0 }}

[[models]]
id = "spare"
backend = "sandbox"

[[models]]
id = "hurried"
targets = [{{ upstream = "first", model = "slow:30" }}, {{ upstream = "second", model = "ok" }}]
route = {{ strategy = "priority", hedge = {{ after_s = 0.05 }} }}

[[models]]
id = "patient"
targets = [{{ upstream = "second", model = "slow_first_token:0.3" }}]
route = {{ disconnect = "drain" }}
prices = {{ input_usd_per_mtok = "1", output_usd_per_mtok = "2" }}
"""
QUESTION: Any = [{"role": "user", "content": "Hello?"}]


class Tour:
    def __init__(self, server: Server, first: ScriptedUpstream, second: ScriptedUpstream) -> None:
        self.server, self.first, self.second = server, first, second
        self.key = server.credentials["api_key"]
        self.sdk = OpenAI(base_url=f"{server.base_url}/v1", api_key=self.key, max_retries=0)

    def ask(self, model: str, *, headers: dict[str, str] | None = None, **members: Any) -> Any:
        """The SDK's raw answer: headers, and the completion by `parse()`."""
        return self.sdk.chat.completions.with_raw_response.create(
            model=model, messages=QUESTION, extra_headers=headers, **members
        )

    def receipt(self, answer: Any) -> Any:
        return self.server.get(f"/v1/requests/{answer.headers['x-request-id']}", key=self.key)[1]

    def circuit(self) -> str:
        """The state of the circuit of the first upstream's model `ok`."""
        rows = self.server.get("/v1/admin/circuits", key=self.key)[1]["data"]
        (found,) = [row["state"] for row in rows if (row["upstream"], row["upstream_model"]) == ("first", "ok")]
        return str(found)


@pytest.fixture(scope="module")
def tour(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tour]:
    with ScriptedUpstream() as first, ScriptedUpstream() as second:
        config = CONFIG.format(first=first.url, second=second.url)
        with Server(tmp_path_factory.mktemp("routing"), config=config) as server:
            made = Tour(server, first, second)
            yield made
            made.sdk.close()


@pytest.fixture(autouse=True)
def _well(tour: Tour) -> Iterator[None]:
    yield
    tour.first.behave(None)


def test_a_target_that_fails_is_followed_by_the_next(tour: Tour) -> None:
    tour.first.behave("status:503")
    answer = tour.ask("both")
    assert answer.parse().choices[0].message.content == "Hello."
    assert answer.headers["x-attempts"] == "2"
    bill = tour.receipt(answer)
    assert [attempt["upstream"] for attempt in bill["attempts"]] == ["first", "second"]
    assert [attempt["status"] for attempt in bill["attempts"]] == [502, 200]
    assert bill["attempts"][1]["why"] == "failed"
    # Only the one that answered is charged.
    assert Decimal(bill["cost_usd"]) == Decimal(USAGE["prompt_tokens"] + 2 * USAGE["completion_tokens"]) / 10**6


def test_a_stream_is_moved_on_until_its_first_token(tour: Tour) -> None:
    tour.first.behave("hang_after_head")
    answer = tour.ask("both", stream=True)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in answer.parse()) == "Hello."
    assert answer.headers["x-attempts"] == "2"


def test_another_model_answers_and_says_so(tour: Tour) -> None:
    answer = tour.ask("broken")
    assert answer.parse().model == "spare"
    assert answer.headers["x-model-requested"] == "broken"
    assert answer.headers["x-model-served"] == "spare"
    assert (answer.headers["x-fallback"], answer.headers["x-attempts"]) == ("failed", "3")
    bill = tour.receipt(answer)
    assert (bill["model"], bill["status"]) == ("spare", 200)
    assert [attempt["model"] for attempt in bill["attempts"]] == ["broken", "broken", "spare"]


def test_a_prompt_that_is_too_long_goes_to_the_model_that_has_room(tour: Tour) -> None:
    answer = tour.ask("small")
    assert (answer.headers["x-model-served"], answer.headers["x-fallback"]) == ("large", "context")
    # At that model's own price.
    assert Decimal(answer.headers["x-cost-usd"]) == Decimal(10 * 9 + 20 * 2) / 10**6


def test_a_call_may_ask_for_less(tour: Tour) -> None:
    """By a header or, where headers can't be set, by metadata; never for more than the operator allows."""
    with pytest.raises(Exception, match="failed") as failed:
        tour.ask("broken", headers={"x-modelport-route": "fallback=?0, attempts=1"})
    assert failed.value.status_code == 502  # type: ignore[attr-defined]
    by_metadata = tour.ask("broken", metadata={"modelport_route": "attempts=1"})
    assert by_metadata.headers["x-attempts"] == "2"
    with pytest.raises(Exception, match="x-modelport-route") as refused:
        tour.ask("both", headers={"x-modelport-route": "target=second"})
    assert refused.value.status_code == 400  # type: ignore[attr-defined]


async def test_an_upstream_that_fails_again_and_again_is_left_alone_until_it_is_well(tour: Tour) -> None:
    tour.first.behave("status:500")
    while tour.circuit() == "closed":
        tour.ask("both")
    asked = tour.first.told()["asked"]["ok"]
    assert tour.ask("both").headers.get("x-attempts") is None
    assert tour.first.told()["asked"]["ok"] == asked

    tour.first.behave(None)

    async def closed() -> bool:
        await asyncio.to_thread(tour.ask, "both")
        return await asyncio.to_thread(tour.circuit) == "closed"

    await wait_until(closed, "a probe went well and the circuit is closed")
    text = tour.server.request("GET", "/metrics")[2].decode()
    assert 'modelport_circuit_state{model="ok",upstream="first"} 0.0' in text


def test_the_circuits_are_for_operators_keys_alone(tour: Tour) -> None:
    created = tour.server.request("POST", "/v1/api_keys", body={"name": "customer"}, key=tour.key)
    customer = json.loads(created[2])["key"]
    assert tour.server.get("/v1/admin/circuits", key=customer)[0] == 403
    assert tour.server.get("/v1/admin/circuits", key=tour.server.credentials["test_api_key"])[0] == 403


async def test_a_slow_target_gets_a_rival_and_the_loser_is_hung_up_on(tour: Tour) -> None:
    before = tour.first.told()["hangups"]
    answer = tour.ask("hurried")
    assert answer.parse().choices[0].message.content == "Hello."
    bill = tour.receipt(answer)
    assert {(row["upstream"], row["error_code"], row["why"]) for row in bill["attempts"]} == {
        ("first", "slower", None),
        ("second", None, "hedge"),
    }
    assert (bill["input_tokens"], bill["output_tokens"]) == (9, 2)
    await wait_until(lambda: tour.first.told()["hangups"] == before + 1, "the slower one was hung up on")


async def test_with_drain_an_answer_is_read_on_and_charged_after_a_hang_up(tour: Tour) -> None:
    body = {"model": "patient", "messages": QUESTION}
    async with httpx.AsyncClient(base_url=tour.server.base_url) as http:
        with pytest.raises(httpx.ReadTimeout):
            await http.post(
                "/v1/chat/completions", json=body, headers={"authorization": f"Bearer {tour.key}"}, timeout=0.1
            )

    def ended() -> bool:
        rows = tour.server.get("/v1/usage?model=patient&group_by=status", key=tour.key)[1]["data"]
        return bool(rows) and rows[0]["group"] == {"status": "499"} and rows[0]["output_tokens"] == 2

    await wait_until(ended, "the whole answer was charged")
    assert tour.second.told()["hangups"] == 0


def test_a_target_that_is_gone_is_not_missed(tour: Tour) -> None:
    tour.first.kill()
    answer = tour.ask("both")
    assert answer.parse().choices[0].message.content == "Hello."
    assert [row["error_code"] for row in tour.receipt(answer)["attempts"]] == ["upstream_failed", None]
    tour.first.start()


def test_the_metrics_tell_of_retries_fallbacks_and_rivals(tour: Tour) -> None:
    tour.ask("broken")
    tour.ask("small")
    tour.ask("hurried")
    text = tour.server.request("GET", "/metrics")[2].decode()
    for line in (
        'modelport_attempts_total{outcome="failed",upstream="first"}',
        'modelport_attempts_total{outcome="ok",upstream="local"}',
        'modelport_retries_total{cause="failed"}',
        'modelport_fallbacks_total{cause="failed",model="broken"}',
        'modelport_fallbacks_total{cause="context",model="small"}',
        'modelport_hedges_total{upstream="first",winner="second"}',
    ):
        assert f"\n{line} " in text, line
