"""What the OpenAI surface promises over a real llama.cpp: chats, completions, JSON, tools, refusals."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator

import jsonschema_rs
import pytest
import pytest_asyncio

from modelport.backends.llamacpp import LlamaCppBackend, LlamaCppOptions
from modelport.dialect.openai import events
from modelport.errors import BadRequest, CallTimeout, ContextTooLong
from tests.contract.llamacpp_calls import ask, chat, completion, engine_and_backend

pytestmark = pytest.mark.asyncio(loop_scope="module")

WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather in a city.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "maxLength": 20}, "unit": {"enum": ["C", "F"]}},
            "required": ["city", "unit"],
            "additionalProperties": False,
        },
    },
}
CLOCK = {"type": "function", "function": {"name": "get_time", "parameters": {"type": "object", "properties": {}}}}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def backend() -> AsyncIterator[LlamaCppBackend]:
    async with engine_and_backend(LlamaCppOptions(context_tokens=512)) as (_, backend):
        yield backend


async def test_a_chat_is_answered_and_counted(backend: LlamaCppBackend) -> None:
    call = chat("What is the capital of France?", seed=1, max_tokens=20)
    counted = await backend.count_input(call, model="smol")
    answer = await ask(backend, call)
    assert answer.content
    assert answer.usage.input_tokens == counted > 5
    assert 0 < answer.usage.output_tokens <= 20


async def test_usage_is_exact_on_every_delta(backend: LlamaCppBackend) -> None:
    """The last usage of an answer cut anywhere is what was produced until there."""
    answer = await ask(backend, chat("Count to ten.", seed=1, max_tokens=12, temperature=0))
    counts = [delta.usage.output_tokens for delta in answer.deltas if delta.usage]
    assert len(counts) == len(answer.deltas)
    assert counts == sorted(counts)
    assert counts[-1] == 12
    assert answer.finish == "length"


async def test_the_same_seed_gives_the_same_answer(backend: LlamaCppBackend) -> None:
    answers = [await ask(backend, chat("Tell me a story.", seed=seed, max_tokens=24)) for seed in (7, 7, 8)]
    assert answers[0].content == answers[1].content
    assert answers[0].content != answers[2].content


async def test_n_choices_differ_and_the_prompt_is_charged_once(backend: LlamaCppBackend) -> None:
    call = chat("Tell me a story.", seed=1, n=3, max_tokens=16, temperature=1)
    counted = await backend.count_input(call, model="smol")
    answer = await ask(backend, call)
    assert [choice["index"] for choice in answer.body["choices"]] == [0, 1, 2]
    assert len({choice["message"]["content"] for choice in answer.body["choices"]}) == 3
    assert answer.usage.input_tokens == counted
    assert answer.usage.output_tokens <= 48


async def test_the_bound_of_the_model_holds_where_the_caller_sets_none(backend: LlamaCppBackend) -> None:
    answer = await ask(backend, chat("Tell me a long story."), max_output_tokens=5)
    assert (answer.usage.output_tokens, answer.finish) == (5, "length")


async def test_stop_strings_never_leak(backend: LlamaCppBackend) -> None:
    """A stop string that spans tokens is held back until it is known to be one."""
    free = await ask(backend, chat("Name three colours.", seed=3, max_tokens=30, temperature=0))
    stop = free.content[7:12]
    answer = await ask(backend, chat("Name three colours.", seed=3, max_tokens=30, temperature=0, stop=[stop]))
    assert answer.content == free.content[: free.content.index(stop)]
    assert answer.finish == "stop"


async def test_no_half_characters(backend: LlamaCppBackend) -> None:
    """Letters of several tokens come whole: the text of the chunks has no replacement characters."""
    line = "Emoji: " + "🦜" * 9 + " Chinese: " + "龘" * 8 + "\n"
    prompt = line + line + "Emoji: 🦜"
    answer = await ask(backend, completion(prompt, max_tokens=40, temperature=0))
    text = answer.body["choices"][0]["text"]
    assert "🦜" in text or "龘" in text
    assert "\ufffd" not in text.rstrip("\ufffd")
    assert [delta.usage.output_tokens for delta in answer.deltas if delta.usage][-1] == 40


async def test_prompts_as_texts_and_as_tokens(backend: LlamaCppBackend) -> None:
    answer = await ask(backend, completion(["One, two,", "Monday,"], n=2, max_tokens=4, echo=True))
    texts = [choice["text"] for choice in answer.body["choices"]]
    assert [text.split(",")[0] for text in texts] == ["One", "One", "Monday", "Monday"]
    tokens = await ask(backend, completion([1, 2, 3], max_tokens=2))
    assert (tokens.usage.input_tokens, tokens.usage.output_tokens) == (3, 2)


async def test_logprobs_in_both_forms(backend: LlamaCppBackend) -> None:
    chatted = await ask(backend, chat("Hello", logprobs=True, top_logprobs=3, max_tokens=3))
    items = chatted.body["choices"][0]["logprobs"]["content"]
    assert "".join(item["token"] for item in items) == chatted.content
    assert all(len(item["top_logprobs"]) == 3 and item["logprob"] <= 0 for item in items)
    completed = (await ask(backend, completion("The sea", logprobs=2, max_tokens=3))).body["choices"][0]
    assert "".join(completed["logprobs"]["tokens"]) == completed["text"]
    assert completed["logprobs"]["text_offset"][0] == 0


async def test_logit_bias_decides(backend: LlamaCppBackend) -> None:
    comma = "28"
    answer = await ask(backend, completion("Hello", max_tokens=3, temperature=0, logit_bias={comma: 100}))
    assert answer.body["choices"][0]["text"] == ",,,"


SCHEMAS = [
    {
        "type": "object",
        "properties": {
            "name": {"type": "string", "maxLength": 12},
            "age": {"type": "integer", "minimum": 0, "maximum": 150},
            "score": {"type": "number", "minimum": 0, "maximum": 1},
            "tags": {"type": "array", "items": {"enum": ["a", "b"]}, "minItems": 1, "maxItems": 2},
        },
        "required": ["name", "age", "score", "tags"],
        "additionalProperties": False,
    },
    {"type": "object", "properties": {"when": {"type": "string", "format": "date"}}, "required": ["when"]},
    {"type": "array", "prefixItems": [{"type": "boolean"}, {"type": "null"}], "items": False, "minItems": 2},
    {
        "$defs": {
            "node": {
                "type": "object",
                "properties": {"left": {"anyOf": [{"$ref": "#/$defs/node"}, {"type": "null"}]}},
                "required": ["left"],
                "additionalProperties": False,
            }
        },
        "$ref": "#/$defs/node",
    },
    {"type": "object", "properties": {"id": {"type": "string", "pattern": "^[A-Z]{2}-[0-9]{3}$"}}, "required": ["id"]},
    {"anyOf": [{"type": "integer", "multipleOf": 5}, {"const": "none"}]},
]


@pytest.mark.parametrize("schema", SCHEMAS)
async def test_an_answer_follows_its_schema(backend: LlamaCppBackend, schema: dict[str, object]) -> None:
    """It parses and validates, or it says that it was cut by the bound of tokens."""
    wanted = {"type": "json_schema", "json_schema": {"name": "x", "strict": True, "schema": schema}}
    for seed, bound in ((1, 80), (2, 5)):
        answer = await ask(backend, chat("Make one up.", seed=seed, max_tokens=bound, response_format=wanted))
        if answer.finish != "length":
            assert jsonschema_rs.is_valid(schema, json.loads(answer.content))


async def test_json_object(backend: LlamaCppBackend) -> None:
    answer = await ask(
        backend, chat("A person as JSON.", max_tokens=100, seed=1, response_format={"type": "json_object"})
    )
    assert answer.finish == "length" or isinstance(json.loads(answer.content), dict)


@pytest.mark.parametrize(
    ("schema", "told"),
    [
        ({"type": "strin"}, "/type"),
        ({"type": "object", "properties": {"x": {"not": {}}}}, "`not`"),
        ({"type": "array", "items": {"type": "integer"}, "uniqueItems": True}, "`uniqueItems`"),
        ({"$ref": "https://example.com/schema"}, "inside the schema"),
        ({"$ref": "#/$defs/missing"}, "not in the schema"),
        ({"$defs": {"a": {"$ref": "#/$defs/a"}}, "$ref": "#/$defs/a"}, "nothing but itself"),
        ({"type": "string", "pattern": "(?=a)b"}, "look-around"),
        ({"type": "string", "minLength": 10**9}, "4096"),
        ([1], "a schema is an object"),
        ({"type": "integer", "minimum": 5, "maximum": 3}, "can't be enforced"),
    ],
)
async def test_a_schema_that_is_not_usable_is_refused(backend: LlamaCppBackend, schema: object, told: str) -> None:
    """With a sentence that says where and why, before anything is generated or charged."""
    wanted = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    with pytest.raises(BadRequest, match=told) as caught:
        await ask(backend, chat("Make one up.", max_tokens=20, response_format=wanted))
    assert str(caught.value.param).startswith("response_format")


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "get_weather"}}])
async def test_a_tool_call_is_well_formed(backend: LlamaCppBackend, choice: object) -> None:
    tools = [WEATHER] if choice == "required" else [CLOCK, WEATHER]
    call = chat("The weather in Paris?", tools=tools, tool_choice=choice, max_tokens=80, stream=True)
    answer = await ask(backend, call)
    (tool,) = answer.message["tool_calls"]
    assert answer.finish == "tool_calls"
    assert answer.message["content"] is None
    assert tool["function"]["name"] == "get_weather"
    assert jsonschema_rs.is_valid(WEATHER["function"]["parameters"], json.loads(tool["function"]["arguments"]))  # type: ignore[index]


async def test_tool_calls_stream_in_the_order_that_sdks_expect(backend: LlamaCppBackend) -> None:
    """Role; then id, type and name with empty arguments; then arguments alone; then the reason; then the usage."""
    options = {"stream": True, "stream_options": {"include_usage": True}}
    answer = await ask(
        backend, chat("The weather in Paris?", tools=[WEATHER], tool_choice="required", max_tokens=80, **options)
    )
    chunks = [event for delta in answer.deltas for event in events(delta.raw)]
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks[:-1]]
    assert deltas[0]["role"] == "assistant"
    opening = deltas[1]["tool_calls"][0]
    assert (opening["index"], opening["type"], opening["function"]["arguments"]) == (0, "function", "")
    assert all(set(delta["tool_calls"][0]) == {"index", "function"} for delta in deltas[2:-1])
    assert chunks[-2]["choices"][0]["finish_reason"] == "tool_calls"
    assert chunks[-1]["choices"] == []
    assert chunks[-1]["usage"]["completion_tokens"] == answer.usage.output_tokens


async def test_parallel_tool_calls_do_not_repeat(backend: LlamaCppBackend) -> None:
    tools = [WEATHER, CLOCK]
    answer = await ask(
        backend,
        chat("Weather and time?", tools=tools, tool_choice="required", parallel_tool_calls=True),
        max_output_tokens=200,
    )
    calls = [(tool["function"]["name"], tool["function"]["arguments"]) for tool in answer.message["tool_calls"]]
    assert len(set(calls)) == len(calls)
    assert len({tool["id"] for tool in answer.message["tool_calls"]}) == len(calls)


async def test_tools_are_left_alone_where_the_caller_says_so(backend: LlamaCppBackend) -> None:
    answer = await ask(backend, chat("Hi!", tools=[WEATHER], tool_choice="none", max_tokens=10))
    assert "tool_calls" not in answer.message
    words = await ask(backend, chat("Hi!", tools=[WEATHER], max_tokens=30))
    assert words.content or words.message["tool_calls"]


async def test_a_result_of_a_tool_is_read(backend: LlamaCppBackend) -> None:
    """The whole loop: the assistant's call and the tool's answer go back in."""
    called = {"id": "call_1", "type": "function", "function": {"name": "get_weather", "arguments": '{"city": "Paris"}'}}
    messages = [
        {"role": "user", "content": "The weather in Paris?"},
        {"role": "assistant", "content": None, "tool_calls": [called]},
        {"role": "tool", "tool_call_id": "call_1", "content": "Sunny, 21 degrees"},
    ]
    answer = await ask(backend, chat(messages, tools=[WEATHER], tool_choice="none", max_tokens=30))
    assert answer.content


async def test_a_prompt_beyond_the_context_is_refused(backend: LlamaCppBackend) -> None:
    for text in ("word " * 600, "word " * 400_000):
        with pytest.raises(ContextTooLong, match="512 tokens") as caught:
            await ask(backend, chat(text))
        assert (caught.value.code, caught.value.param) == ("context_length_exceeded", "messages")


async def test_an_answer_ends_where_the_context_does(backend: LlamaCppBackend) -> None:
    answer = await ask(backend, completion("word " * 500, max_tokens=4000, logit_bias={"0": -100, "2": -100}))
    assert answer.finish == "length"
    assert answer.usage.input_tokens + answer.usage.output_tokens <= 512


@pytest.mark.parametrize(
    ("body", "param"),
    [
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]},
            "messages[0]",
        ),
        ({"messages": [{"role": "user"}]}, "messages[0]"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tools": [{"type": "function", "function": {"name": "no spaces"}}]}, "tools[0].function.name"),
        ({"tools": [{"type": "web_search"}]}, "tools[0].type"),
        ({"tools": [WEATHER], "tool_choice": {"type": "function", "function": {"name": "other"}}}, "tool_choice"),
        ({"response_format": {"type": "xml"}}, "response_format"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"logit_bias": {"x": 1}}, "logit_bias"),
    ],
)
async def test_what_makes_no_sense_is_refused(backend: LlamaCppBackend, body: dict[str, object], param: str) -> None:
    messages = body.pop("messages", "Hi")
    with pytest.raises(BadRequest) as caught:
        await ask(backend, chat(messages, **body))  # type: ignore[arg-type]
    assert str(caught.value.param).startswith(param)


@pytest.mark.parametrize(
    ("prompt", "body", "param"),
    [
        ("a", {"suffix": "b"}, "suffix"),
        ([10**8], {}, None),
        ([-1], {}, "prompt"),
        ("", {}, "prompt"),
        ("a", {"best_of": 3}, "best_of"),
    ],
)
async def test_completions_that_make_no_sense(
    backend: LlamaCppBackend, prompt: object, body: dict[str, object], param: str | None
) -> None:
    with pytest.raises(BadRequest) as caught:
        await ask(backend, completion(prompt, **body))
    assert caught.value.param == param


async def test_parts_of_text_are_read(backend: LlamaCppBackend) -> None:
    parts = [{"type": "text", "text": "Say"}, {"type": "text", "text": "hello"}]
    one = await backend.count_input(chat([{"role": "user", "content": parts}]), model="smol")
    assert one == await backend.count_input(chat("Say\nhello"), model="smol")


async def test_a_deadline_ends_a_generation(backend: LlamaCppBackend) -> None:
    with pytest.raises(CallTimeout):
        await ask(
            backend,
            completion("word " * 300, max_tokens=600, timeout_s=0.3, logit_bias={"0": -100, "2": -100}),
            max_output_tokens=None,
        )


async def test_tenants_do_not_share_cached_prompts(backend: LlamaCppBackend) -> None:
    """Whoever asks what another has asked can't see it in the count of cached tokens."""
    secret = "The password of the vault is swordfish, and it must never be told to anybody at all. "
    await ask(backend, completion(secret, organization="org_a", max_tokens=1))
    again = await ask(backend, completion(secret, organization="org_a", max_tokens=1))
    other = await ask(backend, completion(secret, organization="org_b", max_tokens=1))
    assert again.usage.cached_tokens > 10
    assert other.usage.cached_tokens == 0
