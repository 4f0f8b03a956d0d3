"""Upstreams: sell what another server answers, under your own name, keys, limits and prices."""

from __future__ import annotations

import asyncio
import json
from decimal import Decimal
from pathlib import Path

import openai
import pytest
from openai import AsyncOpenAI

from tests.serving import Server
from tests.upstream import COMPLETION, Upstream, chat_events, error_answer, json_answer, stream_answer

QUESTION: list[openai.types.chat.ChatCompletionMessageParam] = [{"role": "user", "content": "Hello?"}]


def configuration(upstream: Upstream) -> str:
    return f"""
default_models = false

[[upstreams]]
name = "primary"
base_url = "{upstream.url}"
api_key_env = "PRIMARY_KEY"

[[models]]
id = "gpt-demo"
targets = [{{ upstream = "primary", model = "gpt-4o-mini" }}]
route.retry.attempts = 1
prices = {{ input_usd_per_mtok = "0.15", output_usd_per_mtok = "0.60" }}
"""


async def test_sell_an_upstreams_model_under_your_own_name(tmp_path: Path) -> None:
    async with Upstream() as upstream:
        server = Server(tmp_path, config=configuration(upstream), env={"PRIMARY_KEY": "sk-upstream"})
        await asyncio.to_thread(server.start)
        key = server.credentials["api_key"]
        async with AsyncOpenAI(base_url=f"{server.base_url}/v1", api_key=key, max_retries=0) as sdk:
            upstream.plan(json_answer(COMPLETION))
            raw = await sdk.chat.completions.with_raw_response.create(model="gpt-demo", messages=QUESTION)
            answer = raw.parse()
            assert answer.choices[0].message.content == "Hello."
            assert answer.model == "gpt-demo"
            assert Decimal(raw.headers["x-cost-usd"]) == (9 * Decimal("0.15") + 2 * Decimal("0.60")) / 10**6

            # The upstream saw its own model name and its own key, never the customer's.
            request = upstream.requests[0]
            assert request.json()["model"] == "gpt-4o-mini"
            assert request.headers["authorization"] == "Bearer sk-upstream"
            assert key not in json.dumps(request.headers)

            usage = {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}
            upstream.plan(stream_answer(chat_events(["Good", " day"], usage=usage)))
            stream = await sdk.chat.completions.create(model="gpt-demo", messages=QUESTION, stream=True)
            assert "".join([chunk.choices[0].delta.content or "" async for chunk in stream]) == "Good day"

            # What the upstream refuses about the request is told as it said it; its own troubles are a 502.
            upstream.plan(error_answer(400, "No such thing."))
            with pytest.raises(openai.BadRequestError, match="No such thing"):
                await sdk.chat.completions.create(model="gpt-demo", messages=QUESTION)
            upstream.plan(error_answer(500, "secret trouble"))
            with pytest.raises(openai.InternalServerError) as failed:
                await sdk.chat.completions.create(model="gpt-demo", messages=QUESTION)
            assert failed.value.status_code == 502
            assert "secret" not in str(failed.value)

            # A test key never spends the upstream's money: the sandbox answers in the model's name.
            before = len(upstream.requests)
            tester = sdk.with_options(api_key=server.credentials["test_api_key"])
            tried = await tester.chat.completions.create(model="gpt-demo", messages=QUESTION)
            assert tried.model == "gpt-demo"
            assert len(upstream.requests) == before
        assert await asyncio.to_thread(server.stop) == 0
