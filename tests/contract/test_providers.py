"""Upstreams of other makes through the whole platform: the OpenAI SDK in front, Gemini or Azure behind."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import openai
import pytest
from openai import AsyncOpenAI

from tests.gemini_upstream import call, candidate, content, refused, stream
from tests.serving import Server
from tests.upstream import (
    COMPLETION,
    Upstream,
    chat_chunk,
    chunk,
    error_answer,
    event,
    hang,
    head,
    json_answer,
    raw,
    stream_answer,
    then,
)
from tests.waiting import wait_until

QUESTION: Any = [{"role": "user", "content": "Hello?"}]
WEATHER: Any = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}
CONFIG = """
default_models = false

[[upstreams]]
name = "google"
kind = "gemini"
base_url = "{url}beta"
api_key_env = "GOOGLE_KEY"

[[upstreams]]
name = "azure"
kind = "azure-openai"
base_url = "{origin}"
api_version = "2026-10-01-preview"
api_key_env = "AZURE_KEY"

[[upstreams]]
name = "azure-v1"
kind = "azure-openai"
base_url = "{origin}/openai/v1"
api_key_env = "AZURE_KEY"

[[models]]
id = "gemini"
targets = [{{ upstream = "google", model = "gemini-3.8-flash" }}]
prices = {{ input_usd_per_mtok = "1", output_usd_per_mtok = "10" }}

[[models]]
id = "vectors"
kind = "embedding"
targets = [{{ upstream = "google", model = "gemini-embedding-001" }}]

[[models]]
id = "gpt"
targets = [{{ upstream = "azure", model = "my deployment" }}]

[[models]]
id = "gpt-v1"
targets = [{{ upstream = "azure-v1", model = "my-deployment" }}]
"""


@dataclass
class World:
    server: Server
    upstream: Upstream
    sdk: AsyncOpenAI

    def usage_of(self, key_id: str) -> Callable[[], dict[str, Any]]:
        def row() -> dict[str, Any]:
            path = f"/v1/usage?group_by=key&key={key_id}"
            _, body = self.server.get(path, key=self.server.credentials["api_key"])
            return body["data"][0] if body["data"] else {}

        return row


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    async with Upstream() as upstream:
        config = CONFIG.format(url=upstream.url, origin=upstream.url.removesuffix("/v1"))
        server = Server(tmp_path, config=config, env={"GOOGLE_KEY": "g-key", "AZURE_KEY": "a-key"})
        await asyncio.to_thread(server.start)
        key = server.credentials["api_key"]
        async with AsyncOpenAI(base_url=f"{server.base_url}/v1", api_key=key, max_retries=0) as sdk:
            yield World(server, upstream, sdk)
        assert await asyncio.to_thread(server.stop) == 0


class TestGemini:
    async def test_chats_streams_and_tools(self, world: World) -> None:
        upstream, sdk = world.upstream, world.sdk
        upstream.plan(json_answer(content(candidate("Hello.", finish="STOP"))))
        made = await sdk.chat.completions.with_raw_response.create(model="gemini", messages=QUESTION)
        answer = made.parse()
        assert (answer.choices[0].message.content, answer.model) == ("Hello.", "gemini")
        assert made.headers["x-cost-usd"] == "0.000037"
        assert upstream.requests[0].headers["x-goog-api-key"] == "g-key"
        assert world.server.credentials["api_key"] not in json.dumps(upstream.requests[0].headers)

        upstream.plan(stream(content(candidate("Hel")), content(candidate("lo", finish="MAX_TOKENS"))))
        chunks = [
            one
            async for one in await sdk.chat.completions.create(
                model="gemini", messages=QUESTION, stream=True, stream_options={"include_usage": True}
            )
        ]
        assert "".join(one.choices[0].delta.content or "" for one in chunks if one.choices) == "Hello"
        assert [one.choices[0].finish_reason for one in chunks if one.choices][-1] == "length"
        assert chunks[-1].usage is not None
        assert chunks[-1].usage.total_tokens == 10

        upstream.plan(json_answer(content(candidate(call("weather", {"city": "Oslo"}), finish="STOP"))))
        asked = await sdk.chat.completions.create(model="gemini", messages=QUESTION, tools=[WEATHER])
        (tool,) = asked.choices[0].message.tool_calls or ()
        assert tool.type == "function"
        assert json.loads(tool.function.arguments) == {"city": "Oslo"}

    async def test_responses_over_gemini(self, world: World) -> None:
        thought = {"text": "Hm.", "thought": True}
        world.upstream.plan(stream(content(candidate(thought)), content(candidate("Hello.", finish="STOP"))))
        async with world.sdk.responses.stream(model="gemini", input="Hello?", reasoning={"effort": "low"}) as events:
            final = await events.get_final_response()
        assert [item.type for item in final.output] == ["reasoning", "message"]
        assert final.output_text == "Hello."
        config = world.upstream.requests[0].json()["generationConfig"]
        assert config == {"thinkingConfig": {"thinkingLevel": "LOW"}}

    async def test_counting_asks_gemini_itself(self, world: World) -> None:
        world.upstream.plan(json_answer({"totalTokens": 31}))
        counted = await world.sdk.responses.input_tokens.count(model="gemini", input="Hello?", instructions="Be brief.")
        assert counted.input_tokens == 31
        request = world.upstream.requests[0]
        assert request.path == "/v1beta/models/gemini-3.8-flash:countTokens"
        asked = request.json()["generateContentRequest"]
        assert asked["model"] == "models/gemini-3.8-flash"
        assert asked["systemInstruction"] == {"parts": [{"text": "Be brief."}]}
        world.upstream.plan(json_answer({"odd": 1}), refused(400, "INVALID_ARGUMENT", "Odd."))
        with pytest.raises(openai.InternalServerError):
            await world.sdk.responses.input_tokens.count(model="gemini", input="x")
        with pytest.raises(openai.BadRequestError, match="Odd"):
            await world.sdk.responses.input_tokens.count(model="gemini", input="x")

    async def test_embeddings(self, world: World) -> None:
        world.upstream.plan(json_answer({"embeddings": [{"values": [0.5, -0.5]}]}))
        answer = await world.sdk.embeddings.create(model="vectors", input="x")
        assert answer.data[0].embedding == [0.5, -0.5]

    @pytest.mark.parametrize(
        ("step", "kind", "code"),
        [
            (refused(400, "INVALID_ARGUMENT", "Odd."), openai.BadRequestError, "upstream_rejected"),
            (refused(403, "PERMISSION_DENIED"), openai.InternalServerError, "upstream_failed"),
            (refused(429, "RESOURCE_EXHAUSTED"), openai.InternalServerError, "overloaded"),
            (json_answer({"promptFeedback": {"blockReason": "OTHER"}}), openai.BadRequestError, "content_filter"),
        ],
    )
    async def test_each_failure_raises_the_sdks_own_class(
        self, world: World, step: Any, kind: type[openai.APIStatusError], code: str
    ) -> None:
        # What may pass is tried again, three times in all.
        world.upstream.plan(step, step, step)
        with pytest.raises(kind) as caught:
            await world.sdk.chat.completions.create(model="gemini", messages=QUESTION)
        assert caught.value.code == code

    async def test_usage_rows_equal_what_the_sdk_saw_also_of_a_hangup(self, world: World) -> None:
        created = world.server.request(
            "POST", "/v1/api_keys", body={"name": "sum"}, key=world.server.credentials["api_key"]
        )
        key = json.loads(created[2])
        row, sdk = world.usage_of(key["id"]), world.sdk.with_options(api_key=key["key"])
        world.upstream.plan(json_answer(content(candidate("Hello.", finish="STOP"))))
        seen = (await sdk.chat.completions.create(model="gemini", messages=QUESTION)).usage
        assert seen is not None
        await wait_until(lambda: row().get("calls") == 1, "the call is in the usage table")
        assert (row()["input_tokens"], row()["output_tokens"]) == (seen.prompt_tokens, seen.completion_tokens)
        opening = head(200, content_type="text/event-stream", transfer_encoding="chunked")
        first = b"data: " + json.dumps(content(candidate("Hel"))).encode() + b"\r\n\r\n"
        world.upstream.plan(then(raw(opening, chunk(first)), hang()))
        async with await sdk.chat.completions.create(model="gemini", messages=QUESTION, stream=True) as dropped:
            await anext(aiter(dropped))
        await wait_until(lambda: row().get("calls") == 2, "the call that was hung up on is there too")
        assert (row()["input_tokens"], row()["output_tokens"]) == (14, 6)
        await wait_until(world.upstream.lines[-1].gone.is_set, "the upstream was hung up on")


class TestAzure:
    async def test_a_dated_version_has_an_address_for_each_deployment(self, world: World) -> None:
        world.upstream.plan(json_answer(COMPLETION | {"prompt_filter_results": [{"prompt_index": 0}]}))
        answer = await world.sdk.chat.completions.create(model="gpt", messages=QUESTION)
        request = world.upstream.requests[0]
        path = "/openai/deployments/my%20deployment/chat/completions?api-version=2026-10-01-preview"
        assert request.path == path
        assert request.headers["api-key"] == "a-key"
        assert "authorization" not in request.headers
        assert answer.model == "gpt"
        assert answer.model_extra == {"prompt_filter_results": [{"prompt_index": 0}]}

    async def test_the_undated_version_is_openais_but_for_the_key(self, world: World) -> None:
        world.upstream.plan(json_answer(COMPLETION))
        await world.sdk.chat.completions.create(model="gpt-v1", messages=QUESTION)
        assert world.upstream.requests[0].path == "/openai/v1/chat/completions"
        assert world.upstream.requests[0].headers["api-key"] == "a-key"
        assert world.upstream.requests[0].json()["model"] == "my-deployment"

    async def test_a_stream_with_filter_results_passes(self, world: World) -> None:
        filters = {"hate": {"filtered": False, "severity": "safe"}}
        opening = {"choices": [], "created": 0, "id": "", "model": "", "object": "", "prompt_filter_results": [filters]}
        middle = chat_chunk({"content": "Hi"})
        middle["choices"][0]["content_filter_results"] = filters
        usage = {"prompt_tokens": 3, "completion_tokens": 1, "total_tokens": 4}
        last = {**chat_chunk({}), "choices": [], "usage": usage}
        parts = [opening, chat_chunk({"role": "assistant", "content": ""}), middle, chat_chunk({}, finish="stop"), last]
        world.upstream.plan(stream_answer([*map(event, parts), b"data: [DONE]\n\n"]))
        chunks = [
            one async for one in await world.sdk.chat.completions.create(model="gpt", messages=QUESTION, stream=True)
        ]
        assert "".join(one.choices[0].delta.content or "" for one in chunks if one.choices) == "Hi"
        assert {one.model for one in chunks} == {"gpt"}
        extra = chunks[2].choices[0].model_extra
        assert extra is not None
        assert extra["content_filter_results"] == filters

    async def test_a_filtered_prompt_keeps_its_code_and_a_wrong_key_is_our_own_trouble(self, world: World) -> None:
        told = {"message": "Filtered.", "type": None, "param": "prompt", "code": "content_filter", "status": 400}
        world.upstream.plan(json_answer({"error": told}, 400))
        with pytest.raises(openai.BadRequestError) as filtered:
            await world.sdk.chat.completions.create(model="gpt", messages=QUESTION)
        assert (filtered.value.code, filtered.value.param) == ("content_filter", "prompt")
        world.upstream.plan(error_answer(401, "secret"))
        with pytest.raises(openai.InternalServerError) as failed:
            await world.sdk.chat.completions.create(model="gpt", messages=QUESTION)
        assert "secret" not in str(failed.value)
