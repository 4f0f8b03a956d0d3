"""The response cache at the door, over an upstream that counts: who is asked, what clients see, what it costs."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.rawhttp import Answer, RawClient
from tests.rawhttp import chat as raw_chat
from tests.serving import Server
from tests.upstream import (
    COMPLETION,
    Step,
    Upstream,
    chat_events,
    drop,
    error_answer,
    json_answer,
    stream_answer,
    then,
    wait_for,
)
from tests.waiting import wait_until

CONFIG = """
default_models = {local}
[[upstreams]]
name = "primary"
base_url = "{url}"
[[models]]
id = "cached"
targets = [{{ upstream = "primary" }}]
prices = {{ input_usd_per_mtok = "100", output_usd_per_mtok = "200" }}
cache = {{ ttl_s = 600, hit_price_basis_points = {price} }}
route = {{ retry = {{ attempts = 1 }} }}
[[models]]
id = "careful"
targets = [{{ upstream = "primary" }}]
fallbacks = ["fallback"]
cache = {{}}
route = {{ retry = {{ attempts = 1 }} }}
[[models]]
id = "fallback"
backend = "sandbox"
[[models]]
id = "plain"
targets = [{{ upstream = "primary" }}]
[[models]]
id = "similar"
targets = [{{ upstream = "primary" }}]
cache = {{ ttl_s = 600 }}
semantic = {{ threshold = 0.9, embedder = "{embedder}" }}
[[models]]
id = "local"
backend = "sandbox"
cache = {{ temperature0_only = true }}
[[models]]
id = "picture"
kind = "image"
backend = "sandbox"
cache = {{}}
"""
USAGE = {"prompt_tokens": 9, "completion_tokens": 2, "total_tokens": 11}
FULL = (9 * 100 + 2 * 200) / 1e6


class Place:
    """A server with a cache, in front of an upstream of the test's own."""

    def __init__(self, server: Server, upstream: Upstream) -> None:
        self.server = server
        self.upstream = upstream
        self.key = server.credentials["api_key"]

    async def ask(
        self, text: str = "hi", *, model: str = "cached", key: str = "", cache_control: str = "", **members: Any
    ) -> Answer:
        body = {"model": model, "messages": [{"role": "user", "content": text}], **members}
        return await self.post("/v1/chat/completions", body, key=key, cache_control=cache_control)

    async def post(self, path: str, body: Any, *, key: str = "", cache_control: str = "") -> Answer:
        headers = {"cache-control": cache_control} if cache_control else {}
        sent = asyncio.to_thread(
            self.server.request, "POST", path, body=body, key=key or self.key, headers=headers
        )  # fmt: skip
        return Answer(*await sent)

    async def receipt(self, answer: Answer) -> Any:
        path = f"/v1/requests/{answer.headers['x-request-id']}"
        await wait_until(lambda: self.server.get(path, key=self.key)[0] == 200, "the call is in the books")
        return self.server.get(path, key=self.key)[1]

    def use(self, *steps: Step) -> None:
        self.upstream.plan(*steps)

    @property
    def asked(self) -> int:
        """How often the upstream was asked."""
        return len(self.upstream.requests)


@asynccontextmanager
async def opened(
    directory: Path, *, price: int = 0, local: bool = False, workers: int = 1, env: dict[str, str] | None = None
) -> AsyncIterator[Place]:
    async with AsyncExitStack() as stack:
        upstream = await stack.enter_async_context(Upstream())
        embedder = "all-minilm-l6-v2" if local else "local"
        config = CONFIG.format(url=upstream.url, price=price, local="true" if local else "false", embedder=embedder)
        server = Server(directory, config=config, workers=workers, env=env)
        await asyncio.to_thread(server.start)
        try:
            yield Place(server, upstream)
        finally:
            assert await asyncio.to_thread(server.stop) == 0


@pytest.fixture
async def place(tmp_path: Path) -> AsyncIterator[Place]:
    async with opened(tmp_path) as made:
        yield made


def slow_stream(go: asyncio.Event) -> Step:
    """A stream whose second half waits for `go`."""
    events = chat_events(["one ", "two ", "three"], usage=USAGE)

    async def step(line: Any, request: Any) -> None:
        await stream_answer(events[:2], end=False)(line, request)
        await wait_for(go)(line, request)
        for part in events[2:]:
            await line.send(b"%x\r\n%b\r\n" % (len(part), part))
        await line.send(b"0\r\n\r\n")

    return step


def data(answer: Answer) -> list[Any]:
    """The chunks of a stream."""
    lines = [line[6:] for line in answer.body.decode().split("\n") if line.startswith("data: ")]
    assert lines[-1] == "[DONE]"
    return [json.loads(line) for line in lines[:-1]]


class TestHits:
    async def test_the_second_call_is_a_hit_of_the_same_body(self, place: Place) -> None:
        first, second = await place.ask(), await place.ask(metadata={"feature": "x"}, user="u")
        assert [answer.headers["x-cache"] for answer in (first, second)] == ["MISS", "HIT"]
        assert second.body == first.body
        assert second.headers["x-request-id"] != first.headers["x-request-id"]
        assert place.asked == 1

    async def test_a_model_without_a_cache_says_nothing_of_one(self, place: Place) -> None:
        for _ in range(2):
            assert "x-cache" not in (await place.ask(model="plain")).headers
        assert place.asked == 2

    async def test_a_stream_comes_from_a_whole_answer_and_a_whole_answer_from_a_stream(self, place: Place) -> None:
        whole = await place.ask("a")
        stream = await place.ask("a", stream=True, stream_options={"include_usage": True})
        assert (stream.headers["x-cache"], stream.headers["content-type"][:17]) == ("HIT", "text/event-stream")
        chunks = data(stream)
        assert chunks[0]["choices"][0]["delta"]["role"] == "assistant"
        assert "".join(part["choices"][0]["delta"].get("content", "") for part in chunks[:-1]) == "Hello."
        assert chunks[-1]["usage"]["total_tokens"] == whole.json()["usage"]["total_tokens"] == 11

        place.use(stream_answer(chat_events(["one ", "two"], usage=USAGE)))
        first = await place.ask("b", stream=True)
        assert all("usage" not in chunk for chunk in data(first))
        again = await place.ask("b")
        assert (first.headers["x-cache"], again.headers["x-cache"]) == ("MISS", "HIT")
        assert again.json()["choices"][0]["message"]["content"] == "one two"
        assert again.json()["usage"]["completion_tokens"] == 2
        with_usage = data(await place.ask("b", stream=True, stream_options={"include_usage": True}))
        assert (with_usage[0]["usage"], with_usage[-1]["usage"]["total_tokens"]) == (None, 11)
        assert place.asked == 2

    async def test_anthropics_format_comes_from_the_same_store_in_each_form(self, place: Place) -> None:
        body = {"model": "cached", "max_tokens": 9, "messages": [{"role": "user", "content": "hi"}]}
        whole = [await place.post("/v1/messages", body) for _ in range(2)]
        stream = await place.post("/v1/messages", {**body, "stream": True})
        assert [answer.headers["x-cache"] for answer in (*whole, stream)] == ["MISS", "HIT", "HIT"]
        assert whole[0].json()["content"] == whole[1].json()["content"]
        assert whole[0].json()["content"][0]["text"].encode() in stream.body
        assert stream.body.endswith(b'data: {"type":"message_stop"}\n\n')
        assert place.asked == 1

    async def test_predictions_and_uploads_are_cached_too(self, place: Place) -> None:
        for path, body in (
            ("/v1/predict", {"model": "picture", "inputs": ["x", {"b": 1, "a": 2}]}),
            ("/v1/images/classify", {"model": "picture", "image": "eA=="}),
        ):
            first, second = await place.post(path, body), await place.post(path, body)
            assert [answer.headers["x-cache"] for answer in (first, second)] == ["MISS", "HIT"]
            assert first.json()["predictions"] == second.json()["predictions"]
            assert first.json()["request_id"] != second.json()["request_id"]

    async def test_what_the_caller_asks_of_the_cache_is_honoured(self, place: Place) -> None:
        async def outcome(cache_control: str = "") -> str:
            return (await place.ask(cache_control=cache_control)).headers["x-cache"]

        assert [await outcome(asked) for asked in ("no-store", "", "no-cache", "", "max-age=60", "max-age=0")] == [
            "BYPASS", "MISS", "BYPASS", "HIT", "HIT", "BYPASS",
        ]  # fmt: skip
        assert place.asked == 4

    async def test_only_temperature_zero_where_the_model_says_so(self, place: Place) -> None:
        warm = [(await place.ask(model="local", temperature=0.5)).headers["x-cache"] for _ in range(2)]
        cold = [(await place.ask(model="local", temperature=0)).headers["x-cache"] for _ in range(2)]
        assert (warm, cold) == (["BYPASS", "BYPASS"], ["MISS", "HIT"])

    async def test_mallory_and_test_keys_share_nothing_with_alice(self, place: Place) -> None:
        await place.ask()
        test = await place.ask(key=place.server.credentials["test_api_key"])
        assert (test.headers["x-cache"], place.asked) == ("MISS", 1)

    async def test_failures_are_not_cached(self, place: Place) -> None:
        broken_off = then(stream_answer(chat_events(["one ", "two "])[:2], end=False), drop())
        for step, members, status in (
            (error_answer(400), {}, 400),
            (error_answer(500), {}, 502),
            (broken_off, {"stream": True}, 200),
        ):
            place.use(step)
            answer = await place.ask(**members)
            assert (answer.status, b'"error"' in answer.body) == (status, True)
        assert ((await place.ask()).headers["x-cache"], place.asked) == ("MISS", 4)


class TestMoney:
    async def test_a_hit_is_free_and_its_receipt_says_why(self, place: Place) -> None:
        first, second = await place.ask(), await place.ask()
        paid, free = await place.receipt(first), await place.receipt(second)
        assert (paid["attempts"][0]["backend"], free["attempts"][0]["backend"]) == ("openai", "cache")
        assert (float(paid["cost_usd"]), float(free["cost_usd"])) == (FULL, 0)
        assert (free["input_tokens"], free["output_tokens"]) == (9, 2)
        assert free["discount_basis_points"] == 10_000
        assert sum(float(line["amount_usd"]) for line in free["lines"]) == pytest.approx(0)
        assert second.headers["x-cost-usd"] == "0.00"
        report = place.server.get("/v1/usage?group_by=backend", key=place.key)[1]
        assert {row["group"]["backend"]: row["calls"] for row in report["data"]} == {"openai": 1, "cache": 1}

    async def test_a_hit_can_have_a_price(self, tmp_path: Path) -> None:
        async with opened(tmp_path, price=2_500) as place:
            await place.ask()
            hit = await place.receipt(await place.ask())
            assert float(hit["cost_usd"]) == pytest.approx(FULL / 4)
            assert sum(float(line["amount_usd"]) for line in hit["lines"]) == pytest.approx(FULL / 4)

    async def test_a_hit_counts_as_a_request_and_uses_no_tokens(self, place: Place) -> None:
        limits = {"requests_per_minute": 3, "tokens_per_minute": 60}
        made = await place.post("/v1/api_keys", {"name": "narrow", "limits": limits})
        key = made.json()["key"]
        first = await place.ask(key=key, max_tokens=30)
        assert first.status == 200, first.body
        answers = [await place.ask(key=key, max_tokens=30) for _ in range(3)]
        assert [answer.status for answer in answers] == [200, 200, 429]
        assert answers[1].headers["x-ratelimit-remaining-tokens"] == "49"


class TestBudgets:
    async def budget(self, place: Place, hard_limit_usd: str) -> str:
        """A key with a budget of its own."""
        made = (await place.post("/v1/api_keys", {"name": "poor"})).json()
        body = {"scope": "key", "target": made["id"], "period": "day", "hard_limit_usd": hard_limit_usd}
        assert (await place.post("/v1/budgets", body)).status == 201
        return str(made["key"])

    async def test_a_free_hit_needs_no_money(self, place: Place) -> None:
        await place.ask(max_tokens=100)
        key = await self.budget(place, "0.000001")
        assert (await place.ask("other", key=key, max_tokens=100)).status == 429
        assert (await place.ask(key=key, max_tokens=100)).headers["x-cache"] == "HIT"

    async def test_an_answer_made_shorter_by_a_budget_is_given_to_nobody_else(self, place: Place) -> None:
        key = await self.budget(place, "0.01")
        short = await place.ask(key=key, max_tokens=1_000)
        assert (short.status, short.headers["x-cache"]) == (200, "BYPASS")
        assert place.upstream.requests[0].json()["max_tokens"] < 1_000
        assert (await place.ask(max_tokens=1_000)).headers["x-cache"] == "MISS"
        assert place.upstream.requests[1].json()["max_tokens"] == 1_000


class TestRoutes:
    async def test_a_stored_answer_is_given_while_the_circuit_is_open(self, place: Place) -> None:
        await place.ask()
        place.upstream.default = error_answer(500)
        for number in range(40):
            if (await place.ask(f"other {number}")).code == "circuit_open":
                break
        refused, hit = await place.ask("another"), await place.ask()
        assert (refused.status, refused.code) == (503, "circuit_open")
        assert (hit.status, hit.headers["x-cache"]) == (200, "HIT")

    async def test_the_answer_of_a_fallback_is_given_and_not_stored(self, place: Place) -> None:
        place.use(error_answer(500))
        first = await place.ask(model="careful")
        assert (first.headers["x-model-served"], first.headers["x-cache"]) == ("fallback", "MISS")
        again = await place.ask(model="careful")
        assert (again.headers["x-model-served"], again.headers["x-cache"]) == ("careful", "MISS")
        assert (await place.ask(model="careful")).headers["x-cache"] == "HIT"


class TestStampedes:
    async def test_a_hundred_equal_calls_ask_the_upstream_once(self, place: Place) -> None:
        go = asyncio.Event()
        place.use(slow_stream(go))
        async with httpx.AsyncClient(base_url=place.server.base_url, timeout=60) as http:

            async def one(number: int) -> httpx.Response:
                body = {"model": "cached", "messages": [{"role": "user", "content": "x"}], "stream": True}
                return await http.post("/v1/chat/completions", json=body, headers={"x-api-key": place.key})

            asking = [asyncio.create_task(one(number)) for number in range(100)]
            await wait_until(lambda: place.asked == 1, "one of them asks")
            await wait_until(lambda: _in_flight(place.server) == 100, "all of them listen")
            go.set()
            answers = await asyncio.gather(*asking)
        assert place.asked == 1
        assert len({answer.content for answer in answers}) == 1
        assert Counter(answer.headers["x-cache"] for answer in answers) == {"HIT": 99, "MISS": 1}
        totals = place.server.get("/v1/usage", key=place.key)[1]["totals"]
        assert (totals["calls"], float(totals["cost_usd"])) == (100, pytest.approx(FULL))

    async def test_a_leader_that_hangs_up_leaves_the_answer_to_the_others_and_pays_it(self, place: Place) -> None:
        go = asyncio.Event()
        place.use(slow_stream(go))
        with RawClient(place.server.port) as leader:
            leader.send(raw_chat(place.key, "x", stream=True, model="cached"))
            await wait_until(lambda: place.asked == 1, "the leader asks")
            following = asyncio.create_task(place.ask("x", stream=True))
            await wait_until(lambda: _in_flight(place.server) == 2, "another listens")
        await wait_until(lambda: _in_flight(place.server) == 2, "the leader is gone, and its call goes on")
        go.set()
        answer = await following
        assert (answer.headers["x-cache"], len(data(answer)), place.asked) == ("HIT", 5, 1)
        await wait_until(lambda: _in_flight(place.server) == 0, "both are settled")
        rows = place.server.get("/v1/usage?group_by=status", key=place.key)[1]["data"]
        costs = {row["group"]["status"]: float(row["cost_usd"]) for row in rows}
        assert costs == {"499": pytest.approx(FULL), "200": 0}

    async def test_the_upstream_is_left_when_all_hang_up(self, place: Place) -> None:
        place.use(slow_stream(asyncio.Event()))
        clients = [RawClient(place.server.port) for _ in range(3)]
        for client in clients:
            client.send(raw_chat(place.key, "x", stream=True, model="cached"))
        await wait_until(lambda: place.asked == 1 and _in_flight(place.server) == 3, "all listen")
        for client in clients:
            client.close()
        await wait_until(lambda: place.upstream.lines[-1].gone.is_set(), "the upstream is left alone")
        await wait_until(lambda: _in_flight(place.server) == 0, "all are settled")
        assert (await place.ask("x")).headers["x-cache"] == "MISS"

    async def test_instances_on_redis_share_answers_and_ask_once(self, tmp_path: Path, redis_url: str) -> None:
        env = {"MODELPORT_STATE__URL": redis_url, "MODELPORT_STATE__NAMESPACE": f"cache-{tmp_path.name}"}
        async with opened(tmp_path, workers=2, env=env) as place:
            go = asyncio.Event()

            async def answer(line: Any, request: Any) -> None:
                await wait_for(go)(line, request)
                await json_answer(COMPLETION)(line, request)

            place.upstream.default = answer
            asking = [asyncio.create_task(place.ask()) for _ in range(24)]
            await wait_until(lambda: place.asked == 1, "one of them asks")
            go.set()
            answers = await asyncio.gather(*asking)
            assert place.asked == 1
            assert Counter(answer.headers["x-cache"] for answer in answers) == {"HIT": 23, "MISS": 1}


async def test_nearly_the_same_question_gets_the_answer_where_that_is_switched_on(tmp_path: Path) -> None:
    """With the real embedding model: a paraphrase hits, another question does not."""
    async with opened(tmp_path, local=True) as place:
        asked = "What is the capital of France?"
        first = await place.ask(asked, model="similar")
        near = await place.ask("What's the capital of France?", model="similar")
        far = await place.ask("How do I bake bread?", model="similar")
        assert [answer.headers["x-cache"] for answer in (first, near, far)] == ["MISS", "HIT", "MISS"]
        assert 0.9 <= float(near.headers["x-cache-similarity"]) <= 1
        assert "x-cache-similarity" not in (await place.ask(asked, model="similar")).headers
        assert place.asked == 2


async def test_metrics_tell_where_answers_come_from(place: Place) -> None:
    for _ in range(3):
        await place.ask()
    await place.ask(cache_control="no-store")
    text = place.server.request("GET", "/metrics")[2].decode()
    for line in ("miss", "hit", "bypass"):
        assert f'modelport_cache_calls_total{{model="cached",origin="{line}"}} {2 if line == "hit" else 1}.0' in text
    held = next(line for line in text.split("\n") if line.startswith("modelport_cache_bytes"))
    assert float(held.split(" ")[1]) > 400


def _in_flight(server: Server) -> float:
    text = server.request("GET", "/metrics")[2].decode()
    return sum(float(line.split(" ")[1]) for line in text.split("\n") if line.startswith("modelport_calls_in_flight"))
