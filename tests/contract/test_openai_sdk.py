"""The official OpenAI SDK against a real server with the default models."""

from __future__ import annotations

import base64
import json
import struct
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import openai
import pytest
from openai import AsyncOpenAI, OpenAI

from tests.serving import Server
from tests.waiting import wait_until

CHAT = "smollm2-135m-instruct"
EMBED = "all-minilm-l6-v2"
QUESTION = [{"role": "user", "content": "What is the capital of France?"}]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    config = """
[[models]]
id = "slow"
backend = "sandbox"
"""
    with Server(tmp_path_factory.mktemp("sdk"), config=config) as server:
        yield server


@pytest.fixture(scope="module")
def client(server: Server) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{server.base_url}/v1", api_key=server.credentials["api_key"], max_retries=0) as client:
        yield client


@pytest.fixture
async def async_client(server: Server) -> AsyncIterator[AsyncOpenAI]:
    key = server.credentials["api_key"]
    async with AsyncOpenAI(base_url=f"{server.base_url}/v1", api_key=key, max_retries=0) as client:
        yield client


def test_chat_answers_a_first_question(client: OpenAI) -> None:
    answer = client.chat.completions.create(model=CHAT, messages=QUESTION, max_tokens=40)
    assert "Paris" in (answer.choices[0].message.content or "")
    assert answer.choices[0].finish_reason in ("stop", "length")
    assert answer.usage is not None
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens


def test_stream_gives_the_same_text_and_exact_usage(client: OpenAI) -> None:
    settings = {"model": CHAT, "messages": QUESTION, "max_tokens": 24, "seed": 7, "temperature": 0}
    whole = client.chat.completions.create(**settings)
    chunks = list(client.chat.completions.create(**settings, stream=True, stream_options={"include_usage": True}))
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == whole.choices[0].message.content
    assert chunks[-1].choices == []
    assert chunks[-1].usage is not None
    assert whole.usage is not None
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens
    assert chunks[-1].usage.prompt_tokens == whole.usage.prompt_tokens
    assert all(chunk.usage is None for chunk in chunks[:-1])
    assert len({(chunk.id, chunk.created, chunk.model, chunk.system_fingerprint) for chunk in chunks}) == 1


def test_stream_without_usage_has_no_usage_member(server: Server) -> None:
    body = {"model": CHAT, "messages": QUESTION, "max_tokens": 5, "stream": True}
    status, headers, raw = server.request("POST", "/v1/chat/completions", body=body, key=server.credentials["api_key"])
    events = [line[6:] for line in raw.decode().split("\n") if line.startswith("data: ")]
    assert status == 200
    assert headers["content-type"].startswith("text/event-stream")
    assert headers["cache-control"] == "no-cache"
    assert headers["x-accel-buffering"] == "no"
    assert events[-1] == "[DONE]"
    assert all("usage" not in json.loads(event) for event in events[:-1])
    assert json.loads(events[0])["choices"][0]["delta"] == {"role": "assistant", "content": "", "refusal": None}


async def test_async_client_streams(async_client: AsyncOpenAI) -> None:
    stream = await async_client.chat.completions.create(model=CHAT, messages=QUESTION, max_tokens=10, stream=True)
    pieces = [chunk.choices[0].delta.content or "" async for chunk in stream if chunk.choices]
    assert "".join(pieces)


def test_raw_response_tells_what_served_it(client: OpenAI) -> None:
    raw = client.chat.completions.with_raw_response.create(model="sandbox", messages=QUESTION)
    assert raw.headers["x-model-served"] == "sandbox"
    assert raw.headers["x-request-id"].startswith("req_")
    assert raw.headers["x-cost-usd"]
    assert raw.headers["traceparent"].startswith("00-")
    assert raw.parse().choices[0].message.content


def test_completions(client: OpenAI) -> None:
    answer = client.completions.create(model=CHAT, prompt="Once upon a time", max_tokens=8)
    assert answer.object == "text_completion"
    assert answer.choices[0].text
    assert answer.usage is not None
    assert answer.usage.completion_tokens <= 8


def test_embeddings_as_floats_and_base64_agree(client: OpenAI, server: Server) -> None:
    texts = ["The cat sits on the mat.", "A kitten rests on a rug.", "Quarterly revenue rose by nine percent."]
    vectors = [item.embedding for item in client.embeddings.create(model=EMBED, input=texts).data]
    assert all(len(vector) == 384 for vector in vectors)
    assert _cosine(vectors[0], vectors[1]) > _cosine(vectors[0], vectors[2]) + 0.2
    body = {"model": EMBED, "input": texts[0], "encoding_format": "base64"}
    _, _, raw = server.request("POST", "/v1/embeddings", body=body, key=server.credentials["api_key"])
    packed = base64.b64decode(json.loads(raw)["data"][0]["embedding"])
    assert struct.unpack("<384f", packed) == pytest.approx(vectors[0], abs=1e-2)


def test_models_are_listed_and_described(client: OpenAI) -> None:
    ids = {model.id for model in client.models.list()}
    assert {CHAT, EMBED, "efficientnet-lite0", "iris", "sandbox"} <= ids
    assert client.models.retrieve("iris").id == "iris"


def test_tools_and_json_schema(client: OpenAI) -> None:
    parameters = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
    tool = {"type": "function", "function": {"name": "weather", "description": "Weather", "parameters": parameters}}
    answer = client.chat.completions.create(
        model=CHAT,
        messages=[{"role": "user", "content": "What is the weather in Oslo?"}],
        tools=[tool],
        tool_choice="required",
        max_tokens=120,
    )
    calls = answer.choices[0].message.tool_calls
    assert calls
    assert calls[0].function.name == "weather"
    assert "city" in json.loads(calls[0].function.arguments)
    age = {"type": "object", "properties": {"age": {"type": "integer"}}, "required": ["age"]}
    structured = client.chat.completions.create(
        model=CHAT,
        messages=[{"role": "user", "content": "Ann is 31. How old is Ann?"}],
        response_format={"type": "json_schema", "json_schema": {"name": "age", "schema": age}},
        max_tokens=60,
    )
    assert isinstance(json.loads(structured.choices[0].message.content or "")["age"], int)


@pytest.mark.parametrize(
    ("directive", "expected"),
    [
        ("400", openai.BadRequestError),
        ("401", openai.AuthenticationError),
        ("403", openai.PermissionDeniedError),
        ("404", openai.NotFoundError),
        ("409", openai.ConflictError),
        ("422", openai.UnprocessableEntityError),
        ("429", openai.RateLimitError),
        ("500", openai.InternalServerError),
        ("503", openai.InternalServerError),
    ],
)
def test_each_failure_raises_the_sdks_own_class(
    client: OpenAI, directive: str, expected: type[openai.APIStatusError]
) -> None:
    with pytest.raises(expected) as caught:
        client.chat.completions.create(
            model="sandbox", messages=[{"role": "user", "content": f"[[error:{directive}]]"}]
        )
    assert caught.value.request_id is not None
    assert caught.value.code


def test_real_failures_raise_the_sdks_own_classes(client: OpenAI, server: Server) -> None:
    with pytest.raises(openai.NotFoundError) as missing:
        client.chat.completions.create(model="nope", messages=QUESTION)
    assert missing.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError) as bad:
        client.chat.completions.create(model=CHAT, messages=[])
    assert bad.value.param == "messages"
    with pytest.raises(openai.AuthenticationError):
        client.with_options(api_key="mp_live_nonsense").chat.completions.create(model=CHAT, messages=QUESTION)
    with pytest.raises(openai.APITimeoutError):
        client.with_options(timeout=0.3).chat.completions.create(
            model="sandbox", messages=[{"role": "user", "content": "[[latency:5s]]"}]
        )
    with pytest.raises(openai.APIConnectionError):
        client.with_options(base_url="http://127.0.0.1:9/v1").models.list()


def test_a_stream_that_breaks_raises_instead_of_ending(client: OpenAI) -> None:
    stream = client.chat.completions.create(
        model="sandbox", messages=[{"role": "user", "content": "[[cut:3]] [[tokens:20]]"}], stream=True
    )
    with pytest.raises(openai.APIError):
        list(stream)


async def test_usage_rows_equal_what_the_sdk_saw(client: OpenAI, server: Server, tmp_path: Path) -> None:
    created = server.request("POST", "/v1/api_keys", body={"name": "sum"}, key=server.credentials["api_key"])
    key = json.loads(created[2])
    seen = [0, 0]
    counted = client.with_options(api_key=key["key"])
    for number in range(5):
        usage = counted.chat.completions.create(
            model=CHAT, messages=QUESTION, max_tokens=4 + number, temperature=0
        ).usage
        assert usage is not None
        seen[0] += usage.prompt_tokens
        seen[1] += usage.completion_tokens
    for chunk in counted.chat.completions.create(
        model=CHAT, messages=QUESTION, max_tokens=9, stream=True, stream_options={"include_usage": True}
    ):
        if chunk.usage is not None:
            seen[0] += chunk.usage.prompt_tokens
            seen[1] += chunk.usage.completion_tokens

    def row() -> dict[str, int]:
        _, body = server.get(f"/v1/usage?group_by=key&key={key['id']}", key=server.credentials["api_key"])
        return body["data"][0] if body["data"] else {}

    await wait_until(lambda: row().get("calls") == 6, "six calls are in the usage table")
    assert (row()["input_tokens"], row()["output_tokens"]) == tuple(seen)


def _cosine(left: list[float], right: list[float]) -> float:
    return sum(a * b for a, b in zip(left, right, strict=True))
