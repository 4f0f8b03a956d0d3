"""Budgets before an upstream that keeps to nothing: it is told the bound, stopped at it, and never charged for more."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from decimal import Decimal
from typing import Any

import pytest
import pytest_asyncio

from tests.budget_calls import Key, chat, key_budget, spent
from tests.problems import check_end
from tests.rawhttp import Answer
from tests.serving import Server
from tests.upstream import (
    COMPLETION,
    Upstream,
    chat_chunk,
    chat_events,
    chunk,
    drip,
    error_answer,
    event,
    head,
    json_answer,
    raw,
    stream_answer,
    then,
)
from tests.waiting import wait_until

pytestmark = pytest.mark.asyncio(loop_scope="module")
LIMIT = "0.0005"
CONFIG = """
default_models = false
[[upstreams]]
name = "far"
base_url = "{url}"
[[models]]
id = "far"
targets = [{{ upstream = "far" }}]
prices = {{ input_usd_per_mtok = "1", output_usd_per_mtok = "2" }}
[[models]]
id = "falls"
targets = [{{ upstream = "far" }}]
fallbacks = ["dear"]
prices = {{ input_usd_per_mtok = "1", output_usd_per_mtok = "2" }}
[[models]]
id = "dear"
backend = "sandbox"
prices = {{ input_usd_per_mtok = "1", output_usd_per_mtok = "20" }}
"""
# A stream that never ends: its beginning, and what it says for ever.
BEGINNING = raw(
    head(200, content_type="text/event-stream", transfer_encoding="chunked"),
    chunk(event(chat_chunk({"role": "assistant", "content": ""}))),
)
ENDLESS = then(BEGINNING, drip(chunk(event(chat_chunk({"content": " and"}))), gap_s=0.001))


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def upstream() -> AsyncIterator[Upstream]:
    async with Upstream() as upstream:
        yield upstream


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def server(upstream: Upstream, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Server]:
    made = Server(tmp_path_factory.mktemp("ceiling"), config=CONFIG.format(url=upstream.url))
    await asyncio.to_thread(made.start)
    yield made
    await asyncio.to_thread(made.stop)


async def call(server: Server, key: Key, **members: Any) -> Answer:
    return await asyncio.to_thread(chat, server, key, "go on", model="far", **members)


async def limited(server: Server) -> tuple[Key, dict[str, Any]]:
    return await asyncio.to_thread(key_budget, server, LIMIT)


async def test_an_endless_stream_is_stopped_at_the_ceiling_and_ended_properly(
    server: Server, upstream: Upstream
) -> None:
    key, budget = await limited(server)
    upstream.plan(ENDLESS)
    answer = await call(server, key, max_tokens=10_000, stream=True, stream_options={"include_usage": True})
    assert check_end(answer) == "[DONE]"
    events = [json.loads(line[6:]) for line in answer.body.decode().split("\n") if line.startswith("data: {")]
    assert events[-2]["choices"] == [{"index": 0, "delta": {}, "logprobs": None, "finish_reason": "length"}]
    assert {(one["id"], one["model"], one["created"]) for one in events} == {("chatcmpl-1", "far", 1)}
    told = upstream.requests[-1].json()["max_tokens"]
    assert told < 250, "the upstream was told what the budget pays for"
    assert told < events[-1]["usage"]["completion_tokens"] <= told + 50
    await wait_until(lambda: upstream.open == 0, "the upstream is left alone")
    # Twice the estimated input was reserved, so a little of that is left.
    assert Decimal("0.00047") < await asyncio.to_thread(spent, server, budget) <= Decimal(LIMIT)


async def test_the_callers_own_bound_holds_as_well(server: Server, upstream: Upstream) -> None:
    key, budget = await limited(server)
    upstream.plan(ENDLESS)
    answer = await call(server, key, max_tokens=7, stream=True)
    assert check_end(answer) == "[DONE]"
    assert upstream.requests[-1].json()["max_tokens"] == 7
    assert await asyncio.to_thread(spent, server, budget) < Decimal("0.00005")


async def test_a_call_without_a_bound_gets_the_budgets(server: Server, upstream: Upstream) -> None:
    key, _ = await limited(server)
    upstream.plan(stream_answer(chat_events(["Hi", "!"])))
    assert check_end(await call(server, key, max_tokens=None, stream=True)) == "[DONE]"
    assert 200 < upstream.requests[-1].json()["max_tokens"] < 250


async def test_a_whole_answer_that_says_it_used_more_is_charged_what_was_reserved(
    server: Server, upstream: Upstream
) -> None:
    key, budget = await limited(server)
    usage = {"prompt_tokens": 90_000, "completion_tokens": 80_000, "total_tokens": 170_000}
    upstream.plan(json_answer({**COMPLETION, "usage": usage}))
    answer = await call(server, key, max_tokens=5)
    assert answer.json()["usage"] == usage
    cost = Decimal(answer.headers["x-cost-usd"])
    assert cost == await asyncio.to_thread(spent, server, budget) < Decimal("0.0001")
    path = f"/v1/requests/{answer.headers['x-request-id']}"
    _, receipt = await asyncio.to_thread(server.get, path, key=server.credentials["api_key"])
    assert Decimal(receipt["cost_usd"]) == cost == sum(Decimal(line["amount_usd"]) for line in receipt["lines"])
    assert receipt["lines"][-1]["item"] == "adjustment"


async def test_an_answer_that_ends_by_itself_is_passed_on_as_it_is(server: Server, upstream: Upstream) -> None:
    """All of it comes in one read, above the bound, with an end of its own."""
    key, _ = await limited(server)
    upstream.plan(stream_answer([b"".join(chat_events(["one", "two", "three", "four"]))]))
    answer = await call(server, key, max_tokens=2, stream=True)
    assert check_end(answer) == "[DONE]"
    assert answer.body.count(b'"finish_reason":"stop"') == 1
    assert b'"length"' not in answer.body


async def test_the_dearest_model_that_may_answer_is_what_is_reserved_for(server: Server, upstream: Upstream) -> None:
    """The cheap one fails, and the dear one that answers for it keeps to what the budget pays it."""
    key, budget = await limited(server)
    upstream.plan(*[error_answer(500)] * 8)
    answer = await asyncio.to_thread(chat, server, key, "[[tokens:400]]", model="falls", max_tokens=400)
    assert (answer.status, answer.headers["x-model-served"]) == (200, "dear")
    assert answer.json()["choices"][0]["finish_reason"] == "length"
    assert Decimal("0.0004") < await asyncio.to_thread(spent, server, budget) <= Decimal(LIMIT)
