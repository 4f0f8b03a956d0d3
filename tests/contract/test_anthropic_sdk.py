"""The official Anthropic SDK against a real server with the default models."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import anthropic
import pytest
from anthropic import Anthropic, AsyncAnthropic
from anthropic.types import MessageParam, ToolParam

from tests.serving import Server
from tests.waiting import wait_until

CHAT = "smollm2-135m-instruct"
QUESTION: list[MessageParam] = [{"role": "user", "content": "What is the capital of France?"}]
CITY: dict[str, object] = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
WEATHER: ToolParam = {"name": "weather", "description": "The weather in a city", "input_schema": CITY}
CLASSIC = {"anthropic-version": "2023-06-01"}


def says(text: str) -> list[MessageParam]:
    return [{"role": "user", "content": text}]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with Server(tmp_path_factory.mktemp("anthropic")) as server:
        yield server


@pytest.fixture(scope="module")
def client(server: Server) -> Iterator[Anthropic]:
    with Anthropic(base_url=server.base_url, api_key=server.credentials["api_key"], max_retries=0) as client:
        yield client


@pytest.fixture
async def async_client(server: Server) -> AsyncIterator[AsyncAnthropic]:
    key = server.credentials["api_key"]
    async with AsyncAnthropic(base_url=server.base_url, api_key=key, max_retries=0) as client:
        yield client


def new_key(server: Server, **limits: int) -> dict[str, Any]:
    body = {"name": "of one test", "limits": limits}
    status, _, raw = server.request("POST", "/v1/api_keys", body=body, key=server.credentials["api_key"])
    assert status == 201
    key: dict[str, Any] = json.loads(raw)
    return key


def text_of(message: anthropic.types.Message) -> str:
    return "".join(block.text for block in message.content if block.type == "text")


class TestAnswers:
    def test_the_local_model_answers_a_first_question(self, client: Anthropic) -> None:
        message = client.messages.create(model=CHAT, max_tokens=40, messages=QUESTION)
        assert "Paris" in text_of(message)
        assert (message.type, message.role, message.model) == ("message", "assistant", CHAT)
        assert message.id.startswith("msg_")
        assert message.stop_reason in ("end_turn", "max_tokens")
        assert message.usage.input_tokens > 0

    def test_a_stream_gives_the_same_text_and_the_same_usage(self, client: Anthropic) -> None:
        asked: dict[str, Any] = {"model": CHAT, "max_tokens": 24, "messages": QUESTION}
        # Sampling is left to the classic version; `seed` is a member that Anthropic does not know.
        same: dict[str, Any] = {"extra_headers": CLASSIC, "extra_body": {"temperature": 0, "seed": 7}}
        whole = client.messages.create(**asked, **same)
        with client.messages.stream(**asked, **same) as stream:
            text = "".join(stream.text_stream)
            final = stream.get_final_message()
        assert text == text_of(final) == text_of(whole)
        assert final.usage.output_tokens == whole.usage.output_tokens
        assert final.usage.input_tokens + (final.usage.cache_read_input_tokens or 0) == (
            whole.usage.input_tokens + (whole.usage.cache_read_input_tokens or 0)
        )
        assert final.stop_reason == whole.stop_reason

    async def test_the_asynchronous_client_streams(self, async_client: AsyncAnthropic) -> None:
        async with async_client.messages.stream(model=CHAT, max_tokens=10, messages=QUESTION) as stream:
            pieces = [piece async for piece in stream.text_stream]
        assert "".join(pieces)

    def test_events_come_in_their_order(self, client: Anthropic) -> None:
        events = list(
            client.messages.create(model="sandbox", max_tokens=99, messages=says("[[tokens:3]]"), stream=True)
        )
        kinds = [event.type for event in events]
        assert kinds[:2] == ["message_start", "content_block_start"]
        assert set(kinds[2:-3]) == {"content_block_delta"}
        assert kinds[-3:] == ["content_block_stop", "message_delta", "message_stop"]

    def test_the_answer_tells_what_served_it_and_what_is_left(self, client: Anthropic, server: Server) -> None:
        key = new_key(server, requests_per_minute=50, tokens_per_minute=5000)["key"]
        raw = client.with_options(api_key=key).messages.with_raw_response.create(
            model="sandbox", max_tokens=99, messages=QUESTION
        )
        assert raw.headers["request-id"] == raw.headers["x-request-id"]
        assert raw.headers["x-model-served"] == "sandbox"
        for kind in ("requests", "tokens", "input-tokens", "output-tokens"):
            limit = int(raw.headers[f"anthropic-ratelimit-{kind}-limit"])
            assert 0 < int(raw.headers[f"anthropic-ratelimit-{kind}-remaining"]) < limit
            assert raw.headers[f"anthropic-ratelimit-{kind}-reset"].endswith("Z")
        assert text_of(raw.parse())

    def test_the_system_prompt_arrives_as_text_and_as_blocks(self, client: Anthropic) -> None:
        """The sandbox's count of a prompt is exact, so that what arrived can be told from it."""
        counts = [
            client.messages.create(model="sandbox", max_tokens=9, messages=QUESTION, system=system).usage.input_tokens
            for system in ("Be brief and be kind.", [{"type": "text", "text": "Be brief and be kind."}])
        ]
        without = client.messages.create(model="sandbox", max_tokens=9, messages=QUESTION).usage.input_tokens
        assert counts[0] == counts[1] > without

    def test_counted_tokens_are_the_ones_that_are_charged(self, client: Anthropic) -> None:
        for model in (CHAT, "sandbox"):
            counted = client.messages.count_tokens(model=model, messages=QUESTION, system="Be brief.")
            used = client.messages.create(model=model, max_tokens=1, messages=QUESTION, system="Be brief.").usage
            assert counted.input_tokens == used.input_tokens + (used.cache_read_input_tokens or 0)

    @pytest.mark.parametrize("stream", [False, True])
    @pytest.mark.parametrize(
        ("said", "reason"),
        [
            ("[[tokens:3]]", "end_turn"),
            ("[[tokens:50]]", "max_tokens"),
            ('[[tool:weather {"city": "Oslo"}]]', "tool_use"),
        ],
    )
    def test_reasons_to_stop(self, client: Anthropic, said: str, reason: str, stream: bool) -> None:
        asked: dict[str, Any] = {"model": "sandbox", "max_tokens": 45, "messages": says(said)}
        if stream:
            with client.messages.stream(**asked) as events:
                message = events.get_final_message()
        else:
            message = client.messages.create(**asked)
        assert message.stop_reason == reason
        assert message.stop_sequence is None

    @pytest.mark.parametrize("model", [CHAT, "sandbox"])
    @pytest.mark.parametrize("stream", [False, True])
    def test_a_stop_sequence_is_named(self, client: Anthropic, model: str, stream: bool) -> None:
        asked: dict[str, Any] = {"model": model, "max_tokens": 60, "stop_sequences": ["never said", " is"]}
        if stream:
            with client.messages.stream(**asked, messages=QUESTION) as events:
                message = events.get_final_message()
        else:
            message = client.messages.create(**asked, messages=QUESTION)
        assert (message.stop_reason, message.stop_sequence) == ("stop_sequence", " is")
        assert " is" not in text_of(message)


class TestTools:
    @pytest.mark.parametrize("stream", [False, True])
    def test_a_tool_is_called_and_its_result_answered(self, client: Anthropic, stream: bool) -> None:
        messages = says('[[tool:weather {"city": "Oslo", "days": [1, 2]}]] What is the weather?')
        asked: dict[str, Any] = {"model": "sandbox", "max_tokens": 200, "tools": [WEATHER]}
        if stream:
            with client.messages.stream(**asked, messages=messages) as events:
                first = events.get_final_message()
        else:
            first = client.messages.create(**asked, messages=messages)
        (call,) = [block for block in first.content if block.type == "tool_use"]
        assert (call.name, call.input) == ("weather", {"city": "Oslo", "days": [1, 2]})
        result: MessageParam = {
            "role": "user",
            "content": [{"type": "tool_result", "tool_use_id": call.id, "content": "Rain"}],
        }
        second = client.messages.create(**asked, messages=[*messages, first.to_param(), result])
        assert second.stop_reason == "end_turn"
        assert text_of(second)

    def test_the_local_model_calls_the_tool_that_it_has_to(self, client: Anthropic) -> None:
        message = client.messages.create(
            model=CHAT,
            max_tokens=120,
            messages=says("What is the weather in Oslo?"),
            tools=[WEATHER],
            tool_choice={"type": "tool", "name": "weather"},
        )
        (call,) = [block for block in message.content if block.type == "tool_use"]
        assert message.stop_reason == "tool_use"
        assert "city" in call.input

    def test_json_follows_its_schema(self, client: Anthropic) -> None:
        age = {"type": "object", "properties": {"age": {"type": "integer"}}, "required": ["age"]}
        message = client.messages.create(
            model=CHAT,
            max_tokens=60,
            messages=says("Ann is 31. How old is Ann?"),
            output_config={"format": {"type": "json_schema", "schema": age}},
        )
        assert isinstance(json.loads(text_of(message))["age"], int)


class TestVersions:
    @pytest.mark.parametrize("name", ["temperature", "top_p", "top_k"])
    def test_the_strict_version_refuses_sampling_and_the_classic_one_takes_it(
        self, client: Anthropic, name: str
    ) -> None:
        asked: dict[str, Any] = {"model": "sandbox", "max_tokens": 9, "messages": QUESTION, "extra_body": {name: 1}}
        with pytest.raises(anthropic.BadRequestError, match=name):
            client.messages.create(**asked)
        with pytest.raises(anthropic.BadRequestError, match=name):
            client.messages.count_tokens(model="sandbox", messages=QUESTION, extra_body={name: 1})
        assert client.messages.create(**asked, extra_headers=CLASSIC).content

    def test_a_version_that_nobody_knows_is_refused(self, client: Anthropic) -> None:
        with pytest.raises(anthropic.BadRequestError, match="2024-01-01"):
            client.messages.create(
                model="sandbox", max_tokens=9, messages=QUESTION, extra_headers={"anthropic-version": "2024-01-01"}
            )

    @pytest.mark.parametrize("header", ["x-api-key", "authorization"])
    def test_the_key_comes_in_either_header(self, server: Server, header: str) -> None:
        key = server.credentials["api_key"]
        body = {"model": "sandbox", "max_tokens": 9, "messages": QUESTION}
        value = key if header == "x-api-key" else f"Bearer {key}"
        status, headers, _ = server.request("POST", "/v1/messages", body=body, headers={header: value})
        assert status == 200
        assert headers["request-id"]


class TestFailures:
    @pytest.mark.parametrize(
        ("directive", "expected", "kind"),
        [
            ("400", anthropic.BadRequestError, "invalid_request_error"),
            ("401", anthropic.AuthenticationError, "authentication_error"),
            ("insufficient_quota", anthropic.APIStatusError, "billing_error"),
            ("403", anthropic.PermissionDeniedError, "permission_error"),
            ("404", anthropic.NotFoundError, "not_found_error"),
            ("409", anthropic.ConflictError, "conflict_error"),
            ("413", anthropic.APIStatusError, "request_too_large"),
            ("422", anthropic.UnprocessableEntityError, "invalid_request_error"),
            ("429", anthropic.RateLimitError, "rate_limit_error"),
            ("500", anthropic.InternalServerError, "api_error"),
            ("502", anthropic.InternalServerError, "api_error"),
            ("503", anthropic.InternalServerError, "overloaded_error"),
            ("504", anthropic.InternalServerError, "timeout_error"),
        ],
    )
    @pytest.mark.parametrize("stream", [False, True])
    def test_each_failure_raises_the_sdks_own_class(
        self, client: Anthropic, directive: str, expected: type[anthropic.APIStatusError], kind: str, stream: bool
    ) -> None:
        with pytest.raises(expected) as caught:
            client.messages.create(
                model="sandbox", max_tokens=9, messages=says(f"[[error:{directive}]]"), stream=stream
            )
        assert caught.value.type == kind
        assert caught.value.request_id
        body: Any = caught.value.body
        assert set(body) == {"type", "error", "request_id"}
        assert set(body["error"]) == {"type", "message"}
        assert body["request_id"] == caught.value.request_id

    def test_overload_has_anthropics_own_status_and_says_when_to_come_back(self, client: Anthropic) -> None:
        with pytest.raises(anthropic.APIStatusError) as caught:
            client.messages.create(model="sandbox", max_tokens=9, messages=says("[[error:503]]"))
        assert caught.value.status_code == 529
        assert caught.value.response.headers["retry-after"] == "1"

    def test_real_failures_raise_the_sdks_own_classes(self, client: Anthropic, server: Server) -> None:
        with pytest.raises(anthropic.NotFoundError):
            client.messages.create(model="nope", max_tokens=9, messages=QUESTION)
        with pytest.raises(anthropic.BadRequestError, match="messages"):
            client.messages.create(model=CHAT, max_tokens=9, messages=[])
        with pytest.raises(anthropic.AuthenticationError):
            client.with_options(api_key="mp_live_nonsense").messages.create(model=CHAT, max_tokens=9, messages=QUESTION)
        with pytest.raises(anthropic.APITimeoutError):
            client.with_options(timeout=0.3).messages.create(
                model="sandbox", max_tokens=9, messages=says("[[latency:5s]]")
            )
        body = {"model": "sandbox", "messages": QUESTION}
        status, _, raw = server.request("POST", "/v1/messages", body=body, key=server.credentials["api_key"])
        assert status == 400
        assert "max_tokens" in json.loads(raw)["error"]["message"]

    @pytest.mark.parametrize(
        ("method", "path", "status"), [("GET", "/v1/messages", 405), ("GET", "/v1/messages/batches", 404)]
    )
    def test_what_is_not_there_is_told_in_the_same_words(
        self, server: Server, method: str, path: str, status: int
    ) -> None:
        told, headers, raw = server.request(method, path, key=server.credentials["api_key"])
        assert told == status
        body = json.loads(raw)
        assert body["type"] == "error"
        assert body["request_id"] == headers["request-id"]

    def test_a_stream_that_breaks_raises_instead_of_ending(self, client: Anthropic, server: Server) -> None:
        said = says("[[cut:3]] [[tokens:20]]")
        with pytest.raises(anthropic.APIStatusError):
            list(client.messages.create(model="sandbox", max_tokens=99, messages=said, stream=True))
        body = {"model": "sandbox", "max_tokens": 99, "messages": said, "stream": True}
        _, _, raw = server.request("POST", "/v1/messages", body=body, key=server.credentials["api_key"])
        last = raw.decode().split("\n\n")[-2]
        assert last.startswith("event: error\n")
        assert b"message_stop" not in raw


class TestBooks:
    async def test_usage_rows_equal_what_the_sdk_saw(self, client: Anthropic, server: Server) -> None:
        key = new_key(server)
        counted = client.with_options(api_key=key["key"])
        seen = [0, 0, 0]
        for number in range(4):
            if number % 2:
                with counted.messages.stream(model=CHAT, max_tokens=4 + number, messages=QUESTION) as stream:
                    usage = stream.get_final_message().usage
            else:
                usage = counted.messages.create(model=CHAT, max_tokens=4 + number, messages=QUESTION).usage
            cached = usage.cache_read_input_tokens or 0
            seen = [seen[0] + usage.input_tokens + cached, seen[1] + usage.output_tokens, seen[2] + cached]

        def row() -> dict[str, int]:
            _, body = server.get(f"/v1/usage?group_by=key&key={key['id']}", key=server.credentials["api_key"])
            return body["data"][0] if body["data"] else {}

        await wait_until(lambda: row().get("calls") == 4, "four calls are in the usage table")
        assert [row()[name] for name in ("input_tokens", "output_tokens", "cached_tokens")] == seen

    async def test_a_hang_up_is_charged_for_what_was_written(self, client: Anthropic, server: Server) -> None:
        said = says("[[tokens:1000]] [[per_token:20ms]]")
        raw = client.messages.with_raw_response.create(model="sandbox", max_tokens=2000, messages=said, stream=True)
        with raw.parse() as stream:
            for number, _ in enumerate(stream):
                if number == 5:
                    break
        path, key = f"/v1/requests/{raw.headers['request-id']}", server.credentials["api_key"]
        await wait_until(lambda: server.get(path, key=key)[0] == 200, "the call is in the books")
        receipt = server.get(path, key=key)[1]
        assert (receipt["status"], receipt["endpoint"]) == (499, "/v1/messages")
        assert 0 < receipt["output_tokens"] < 1000

    async def test_metadata_is_a_tag_of_the_call(self, client: Anthropic, server: Server) -> None:
        raw = client.messages.with_raw_response.create(
            model="sandbox", max_tokens=9, messages=QUESTION, metadata={"user_id": "ann"}
        )
        path, key = f"/v1/requests/{raw.headers['request-id']}", server.credentials["api_key"]
        await wait_until(lambda: server.get(path, key=key)[0] == 200, "the call is in the books")
        assert server.get(path, key=key)[1]["metadata"] == {"user_id": "ann"}


def test_a_server_that_stops_says_so_in_the_streams_that_it_breaks_off(tmp_path: Path) -> None:
    """A stream ends with `message_stop` or with an error, whatever happens."""
    config = 'default_models = false\nserver = { drain_s = 0 }\n[[models]]\nid = "sandbox"\nbackend = "sandbox"\n'
    with (
        Server(tmp_path, config=config) as server,
        Anthropic(base_url=server.base_url, api_key=server.credentials["api_key"], max_retries=0) as client,
    ):
        said = says("[[tokens:1000]] [[per_token:20ms]]")
        stream = client.messages.create(model="sandbox", max_tokens=2000, messages=said, stream=True)
        assert server.process is not None
        for event in stream:
            if event.type == "content_block_delta":
                server.process.terminate()
                break
        with pytest.raises(anthropic.APIStatusError) as broken:
            list(stream)
        assert broken.value.type == "api_error"
