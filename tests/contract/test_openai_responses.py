"""The official OpenAI SDK's `responses` against a real server: the local model, the sandbox, and an upstream."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
from openai import AsyncOpenAI, OpenAI
from pydantic import BaseModel

from tests.rawhttp import RawClient
from tests.serving import Server
from tests.upstream import Upstream, chat_chunk, chat_events, chunk, error_answer, event, head, raw, stream_answer
from tests.waiting import wait_until

LOCAL, SANDBOX = "smollm2-135m-instruct", "sandbox"
QUESTION = "What is the capital of France?"
WEATHER: Any = {
    "type": "function",
    "name": "weather",
    "description": "Weather of a city",
    "strict": True,
    "parameters": {
        "type": "object",
        "properties": {"city": {"type": "string"}},
        "required": ["city"],
        "additionalProperties": False,
    },
}


class Age(BaseModel):
    age: int


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with Server(tmp_path_factory.mktemp("responses")) as server:
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


def test_a_first_response(client: OpenAI) -> None:
    raw_response = client.responses.with_raw_response.create(model=LOCAL, input=QUESTION, max_output_tokens=40)
    response = raw_response.parse()
    assert "Paris" in response.output_text
    assert response.usage is not None
    assert response.usage.total_tokens == response.usage.input_tokens + response.usage.output_tokens
    assert raw_response.headers["x-model-served"] == LOCAL
    assert raw_response.headers["x-cost-usd"]
    assert response.id == "resp_" + raw_response.headers["x-request-id"][4:]


def test_a_stream_says_the_same_as_the_whole(client: OpenAI) -> None:
    asked: Any = {"model": LOCAL, "input": QUESTION, "max_output_tokens": 24, "temperature": 0}
    whole = client.responses.create(**asked)
    deltas, usage = [], None
    for event_ in client.responses.create(**asked, stream=True):
        if event_.type == "response.output_text.delta":
            deltas.append(event_.delta)
        if event_.type in ("response.completed", "response.incomplete"):
            usage = event_.response.usage
    assert "".join(deltas) == whole.output_text
    assert usage == whole.usage


def test_the_stream_helper_ends_with_the_whole_response(client: OpenAI) -> None:
    with client.responses.stream(model=SANDBOX, input="[[tokens:5]]") as stream:
        kinds = [event_.type for event_ in stream]
        final = stream.get_final_response()
    assert kinds[:2] == ["response.created", "response.in_progress"]
    assert kinds[-1] == "response.completed"
    assert len(final.output_text.split()) == 5


async def test_the_async_client_streams(async_client: AsyncOpenAI) -> None:
    async with async_client.responses.stream(model=LOCAL, input=QUESTION, max_output_tokens=10) as stream:
        pieces = [event_.delta async for event_ in stream if event_.type == "response.output_text.delta"]
    assert "".join(pieces)


@pytest.mark.parametrize("model", [LOCAL, SANDBOX])
def test_parse_gives_the_type_that_was_asked_for(client: OpenAI, model: str) -> None:
    response = client.responses.parse(model=model, input="Ann is 31. How old is Ann?", text_format=Age)
    assert isinstance(response.output_parsed, Age)


@pytest.mark.parametrize("model", [LOCAL, SANDBOX])
def test_a_function_is_called_and_its_output_is_answered(client: OpenAI, model: str) -> None:
    question: Any = {"role": "user", "content": "What is the weather in Oslo?"}
    asked = client.responses.create(
        model=model, input=[question], tools=[WEATHER], tool_choice="required", max_output_tokens=80
    )
    (call,) = asked.output
    assert call.type == "function_call"
    assert "city" in json.loads(call.arguments)
    said: Any = [item.model_dump(exclude_none=True) for item in asked.output]
    output: Any = {"type": "function_call_output", "call_id": call.call_id, "output": "Snow."}
    answered = client.responses.create(model=model, input=[question, *said, output], max_output_tokens=20)
    assert answered.output_text


def test_a_streamed_call_has_whole_arguments(client: OpenAI) -> None:
    with client.responses.stream(
        model=SANDBOX, input="Weather?", tools=[WEATHER], tool_choice={"type": "function", "name": "weather"}
    ) as stream:
        deltas = [event_.delta for event_ in stream if event_.type == "response.function_call_arguments.delta"]
        (call,) = stream.get_final_response().output
    assert call.type == "function_call"
    assert "".join(deltas) == call.arguments
    assert call.parsed_arguments == json.loads(call.arguments)


def test_an_answer_at_its_bound_is_incomplete(client: OpenAI) -> None:
    response = client.responses.create(model=LOCAL, input="Count to a hundred.", max_output_tokens=3)
    assert response.status == "incomplete"
    assert response.incomplete_details is not None
    assert response.incomplete_details.reason == "max_output_tokens"
    assert response.usage is not None
    assert response.usage.output_tokens == 3


@pytest.mark.parametrize(
    ("directive", "expected"),
    [
        ("400", openai.BadRequestError),
        ("403", openai.PermissionDeniedError),
        ("404", openai.NotFoundError),
        ("409", openai.ConflictError),
        ("422", openai.UnprocessableEntityError),
        ("429", openai.RateLimitError),
        ("503", openai.InternalServerError),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_each_failure_raises_the_sdks_own_class(
    client: OpenAI, directive: str, expected: type[openai.APIStatusError], stream: bool
) -> None:
    with pytest.raises(expected) as caught:
        client.responses.create(model=SANDBOX, input=f"[[error:{directive}]]", stream=stream)
    assert caught.value.request_id is not None
    assert caught.value.code


@pytest.mark.parametrize(
    ("members", "param"),
    [
        ({"previous_response_id": "resp_1"}, "previous_response_id"),
        ({"tools": [{"type": "web_search"}]}, "tools[0].type"),
        ({"temperature": 3}, "temperature"),
        ({"extra_body": {"seed": "x"}}, "seed"),
        ({"input": []}, "input"),
        ({"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "https://x/y"}]}]}, "input"),
    ],
)
def test_what_cannot_be_done_is_refused_by_the_members_own_name(client: OpenAI, members: Any, param: str) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.responses.create(**{"model": LOCAL, "input": "x", **members})
    assert caught.value.param == param


def test_a_stream_that_breaks_ends_with_response_failed(client: OpenAI) -> None:
    events = list(client.responses.create(model=SANDBOX, input="[[cut:3]] [[tokens:20]]", stream=True))
    assert events[-1].type == "response.failed"
    assert events[-1].response.error is not None
    assert events[-1].response.output_text


def test_a_stream_that_the_servers_stop_cuts_short_says_so(tmp_path: Path) -> None:
    server = Server(
        tmp_path,
        config="default_models = false\n[[models]]\nid = 'sandbox'\nbackend = 'sandbox'\n[server]\ndrain_s = 0.5\n",
    ).start()
    body = json.dumps({"model": SANDBOX, "input": "[[hang:2]]", "stream": True}).encode()
    with RawClient(server.port) as raw_client:
        raw_client.send(
            b"POST /v1/responses HTTP/1.1\r\nhost: x\r\nauthorization: Bearer %b\r\ncontent-length: %d\r\n\r\n%b"
            % (server.credentials["api_key"].encode(), len(body), body)
        )
        assert raw_client.line().startswith(b"HTTP/1.1 200")
        assert server.stop() == 0
        assert b"event: response.failed" in raw_client.rest()


async def test_usage_rows_equal_what_the_sdk_saw_also_of_a_hangup(client: OpenAI, server: Server) -> None:
    created = server.request("POST", "/v1/api_keys", body={"name": "sum"}, key=server.credentials["api_key"])
    key = json.loads(created[2])
    counted = client.with_options(api_key=key["key"])
    usage = counted.responses.create(model=LOCAL, input=QUESTION, max_output_tokens=5).usage
    assert usage is not None
    seen = [usage.input_tokens, usage.output_tokens]
    for event_ in counted.responses.create(model=LOCAL, input=QUESTION, max_output_tokens=9, stream=True):
        if event_.type in ("response.completed", "response.incomplete"):
            assert event_.response.usage is not None
            seen[0] += event_.response.usage.input_tokens
            seen[1] += event_.response.usage.output_tokens

    def row() -> dict[str, int]:
        _, body = server.get(f"/v1/usage?group_by=key&key={key['id']}", key=server.credentials["api_key"])
        return body["data"][0] if body["data"] else {}

    await wait_until(lambda: row().get("calls") == 2, "both calls are in the usage table")
    assert [row()["input_tokens"], row()["output_tokens"]] == seen
    # Who hangs up pays for what was produced until then, and the engine stops.
    with counted.responses.create(model=SANDBOX, input="[[per_token:20ms]] [[tokens:500]]", stream=True) as stream:
        for event_ in stream:
            if event_.type == "response.output_text.delta":
                break
    await wait_until(lambda: row().get("calls") == 3, "the call that was hung up on is there too")
    assert 1 <= row()["output_tokens"] - seen[1] < 500


@pytest.mark.parametrize("model", [LOCAL, SANDBOX])
def test_counting_tells_what_a_response_will_be_charged_for(client: OpenAI, model: str) -> None:
    asked: Any = {"model": model, "instructions": "Be brief.", "input": QUESTION}
    counted = client.responses.input_tokens.count(**asked)
    usage = client.responses.create(**asked, max_output_tokens=2).usage
    assert usage is not None
    assert counted.input_tokens == usage.input_tokens


def upstream_config(upstream: Upstream) -> str:
    return f"""
default_models = false
[[upstreams]]
name = "primary"
base_url = "{upstream.url}"
[[models]]
id = "gpt-demo"
targets = [{{ upstream = "primary", model = "gpt-4o-mini" }}]
"""


async def test_an_upstream_that_only_chats_answers_responses(tmp_path: Path) -> None:
    async with Upstream() as upstream:
        server = Server(tmp_path, config=upstream_config(upstream))
        await asyncio.to_thread(server.start)
        key = server.credentials["api_key"]
        async with AsyncOpenAI(base_url=f"{server.base_url}/v1", api_key=key, max_retries=0) as sdk:
            picture: Any = {"type": "input_image", "image_url": "data:image/png;base64,AA", "detail": "low"}
            words: Any = {"type": "input_text", "text": "What is it?"}
            whole = await sdk.responses.create(
                model="gpt-demo",
                input=[{"role": "user", "content": [words, picture]}],
                reasoning={"effort": "low"},
                max_output_tokens=9,
                extra_body={"service_tier": "flex", "odd": {"a": 1}},
            )
            assert (whole.output_text, whole.model) == ("Hello.", "gpt-demo")
            assert whole.usage is not None
            assert (whole.usage.input_tokens, whole.usage.output_tokens) == (9, 2)
            sent = upstream.requests[0].json()
            assert upstream.requests[0].path == "/v1/chat/completions"
            assert (sent["model"], sent["max_completion_tokens"]) == ("gpt-4o-mini", 9)
            assert (sent["reasoning_effort"], sent["service_tier"], sent["odd"]) == ("low", "flex", {"a": 1})
            assert sent["messages"][0]["content"][1]["image_url"]["detail"] == "low"

            usage = {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}
            upstream.plan(stream_answer(chat_events(["Good", " day"], usage=usage)))
            async with sdk.responses.stream(model="gpt-demo", input="x") as stream:
                final = await stream.get_final_response()
            assert final.output_text == "Good day"
            assert final.usage is not None
            assert final.usage.total_tokens == 5

            # A failure before the first byte is an answer of its own; one behind it is an event.
            upstream.plan(error_answer(400, "No such thing."))
            with pytest.raises(openai.BadRequestError, match="No such thing"):
                await sdk.responses.create(model="gpt-demo", input="x")
            opening = head(200, content_type="text/event-stream", transfer_encoding="chunked")
            upstream.plan(raw(opening, chunk(event(chat_chunk({"content": "Go"}))), close=True))
            cut = [one async for one in await sdk.responses.create(model="gpt-demo", input="x", stream=True)]
            assert cut[-1].type == "response.failed"
        assert await asyncio.to_thread(server.stop) == 0
