"""The sandbox as docs/guides/sandbox.md promises it: deterministic, exact in its counts, and obedient."""

from __future__ import annotations

import base64
import json
import math
import re
import struct
from pathlib import Path
from typing import Any

import jsonschema_rs
import msgspec
import pytest

from modelport.backends.sandbox import SandboxBackend
from modelport.backends.sandbox.directives import KNOWN, read_directives
from modelport.backends.sandbox.failures import FAILURES
from modelport.backends.sandbox.instances import make_instance
from modelport.backends.sandbox.tokens import split_tokens
from modelport.calls import Call, Caller, Delta, Operation, Usage
from modelport.dialect.openai import fold
from modelport.errors import BadRequest, CallTimeout, ModelportError, UpstreamFailed
from modelport.kit.clock import ManualClock
from modelport.requests import ChatRequest, CompletionRequest, EmbeddingRequest, PredictRequest

CALLER = Caller("org_a", "proj_a", "key_a", "test", frozenset({"inference"}), "free")
TYPES: dict[Operation, Any] = {
    Operation.CHAT: ChatRequest,
    Operation.COMPLETION: CompletionRequest,
    Operation.EMBEDDING: EmbeddingRequest,
    Operation.PREDICT: PredictRequest,
}
GUIDE = Path(__file__).parents[2] / "docs" / "guides" / "sandbox.md"
WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}, "days": {"type": "integer", "minimum": 1}},
            "required": ["city", "days"],
        },
    },
}


class Clocked:
    """A sandbox whose waits pass at once and are written down."""

    def __init__(self) -> None:
        self.waits: list[float] = []
        self.backend = SandboxBackend(clock=ManualClock(), sleep=self._sleep)

    async def _sleep(self, seconds: float) -> None:
        if seconds:
            self.waits.append(seconds)

    async def answer(self, call: Call, *, bound: int | None = None) -> list[Delta]:
        stream = self.backend.stream(call, model="sandbox", max_output_tokens=bound)
        return [delta async for delta in stream]

    async def until_error(self, call: Call) -> tuple[list[Delta], ModelportError]:
        stream = self.backend.stream(call, model="sandbox", max_output_tokens=None)
        deltas: list[Delta] = []
        while True:
            try:
                deltas.append(await anext(stream))
            except ModelportError as error:
                return deltas, error


@pytest.fixture
def sandbox() -> Clocked:
    return Clocked()


def call_of(operation: Operation, metadata: dict[str, str] | None = None, **body: Any) -> Call:
    raw = msgspec.json.encode({"model": "sandbox", **body})
    request = msgspec.json.decode(raw, type=TYPES[operation])
    return Call(
        id="req_" + "1" * 32,
        caller=CALLER,
        endpoint="/v1/x",
        operation=operation,
        model="sandbox",
        request=request,
        fields=msgspec.json.decode(raw, type=dict[str, msgspec.Raw]),
        started_us=1_700_000_000_000_000,
        started_s=0.0,
        deadline_s=600.0,
        stream=bool(getattr(request, "stream", False)),
        metadata=metadata or {},
    )


def chat(text: str, metadata: dict[str, str] | None = None, **body: Any) -> Call:
    return call_of(Operation.CHAT, metadata, messages=[{"role": "user", "content": text}], **body)


def completion(prompt: Any, **body: Any) -> Call:
    return call_of(Operation.COMPLETION, prompt=prompt, **body)


def folded(deltas: list[Delta]) -> Any:
    usage = deltas[-1].usage
    assert usage is not None
    return json.loads(fold([delta.raw for delta in deltas], usage))


def said(deltas: list[Delta]) -> str:
    return str(folded(deltas)["choices"][0]["message"]["content"])


class TestAnswers:
    async def test_the_same_request_gets_the_same_answer_that_says_what_it_is(self, sandbox: Clocked) -> None:
        first, again = [said(await sandbox.answer(chat("Hi there"))) for _ in range(2)]
        assert first == again
        assert "sandbox" in first
        assert said(await sandbox.answer(chat("Hi you"))) != first
        assert said(await sandbox.answer(chat("Hi there", seed=5))) != first

    async def test_input_and_output_are_counted_exactly(self, sandbox: Clocked) -> None:
        call = chat("Hello, big world! [[echo]]")
        deltas = await sandbox.answer(call)
        usage = deltas[-1].usage
        assert usage == Usage(await sandbox.backend.count_input(call, model="sandbox"), 5)
        assert said(deltas) == "Hello, big world!"

    async def test_each_token_is_one_delta_with_the_count_so_far(self, sandbox: Clocked) -> None:
        deltas = await sandbox.answer(chat("[[tokens:7]]", stream=True))
        timed = [delta for delta in deltas if delta.timed]
        assert [delta.usage.output_tokens for delta in timed if delta.usage] == [1, 2, 3, 4, 5, 6, 7]
        assert len(split_tokens(said(deltas))) == 7

    async def test_a_bound_cuts_the_answer_and_says_so(self, sandbox: Clocked) -> None:
        for call, bound in [(chat("[[tokens:9]]", max_tokens=4), 50), (chat("[[tokens:9]]"), 4)]:
            deltas = await sandbox.answer(call, bound=bound)
            assert folded(deltas)["choices"][0]["finish_reason"] == "length"
            assert deltas[-1].usage is not None
            assert deltas[-1].usage.output_tokens == 4
        assert folded(await sandbox.answer(chat("[[tokens:4]]", max_tokens=4)))["choices"][0]["finish_reason"] == "stop"

    @pytest.mark.parametrize("stop", ["three", ["nine", "three"]])
    async def test_a_stop_sequence_ends_the_answer_before_it(self, sandbox: Clocked, stop: Any) -> None:
        assert said(await sandbox.answer(chat("[[echo]] one two three four", stop=stop))) == "one two "

    async def test_several_choices_differ_and_are_all_counted(self, sandbox: Clocked) -> None:
        deltas = await sandbox.answer(chat("[[tokens:5]]", n=3))
        choices = folded(deltas)["choices"]
        assert [choice["index"] for choice in choices] == [0, 1, 2]
        assert len({choice["message"]["content"] for choice in choices}) == 3
        assert deltas[-1].usage is not None
        assert deltas[-1].usage.output_tokens == 15

    async def test_usage_is_streamed_only_to_those_who_ask(self, sandbox: Clocked) -> None:
        quiet = await sandbox.answer(chat("Hi", stream=True))
        loud = await sandbox.answer(chat("Hi", stream=True, stream_options={"include_usage": True}))
        assert b"usage" not in b"".join(delta.raw for delta in quiet)
        assert loud[-1].raw.count(b'"completion_tokens"') == 1

    async def test_the_last_user_message_counts_and_parts_are_joined(self, sandbox: Clocked) -> None:
        messages = [
            {"role": "user", "content": "[[error:500]]"},
            {"role": "assistant", "content": "No."},
            {"role": "user", "content": [{"type": "text", "text": "a [[echo]]"}, {"type": "text", "text": "b"}]},
        ]
        deltas = await sandbox.answer(call_of(Operation.CHAT, messages=messages))
        assert said(deltas) == "a \nb"

    async def test_log_probabilities_fit_the_tokens(self, sandbox: Clocked) -> None:
        deltas = await sandbox.answer(chat("[[echo]] one two", logprobs=True, top_logprobs=2))
        content = folded(deltas)["choices"][0]["logprobs"]["content"]
        assert [entry["token"] for entry in content] == ["one", " two"]
        for entry in content:
            assert entry["logprob"] <= 0
            assert bytes(entry["bytes"]).decode() == entry["token"]
            assert entry["top_logprobs"][0]["token"] == entry["token"]
            assert len(entry["top_logprobs"]) == 2


class TestCompletions:
    async def test_each_prompt_has_its_choices(self, sandbox: Clocked) -> None:
        deltas = await sandbox.answer(completion(["one [[echo]]", "two [[echo]]"], n=2))
        assert [choice["text"] for choice in folded(deltas)["choices"]] == ["one", "one", "two", "two"]

    async def test_a_prompt_of_token_ids_is_counted_by_them(self, sandbox: Clocked) -> None:
        assert await sandbox.backend.count_input(completion([1, 2, 3]), model="sandbox") == 3
        assert await sandbox.backend.count_input(completion([[1, 2], [3]]), model="sandbox") == 3
        assert folded(await sandbox.answer(completion([1, 2, 3])))["choices"][0]["text"]

    async def test_echo_puts_the_prompt_first_and_log_probabilities_know_their_places(self, sandbox: Clocked) -> None:
        deltas = await sandbox.answer(completion("ab [[tokens:2]]", echo=True, logprobs=1))
        choice = folded(deltas)["choices"][0]
        assert choice["text"].startswith("ab")
        logprobs = choice["logprobs"]
        assert logprobs["text_offset"] == [2, 2 + len(logprobs["tokens"][0])]
        assert "".join(logprobs["tokens"]) == choice["text"][2:]


class TestTools:
    @pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "get_weather"}}])
    async def test_a_required_tool_is_called_with_arguments_from_its_schema(
        self, sandbox: Clocked, choice: Any
    ) -> None:
        deltas = await sandbox.answer(chat("Hi", tools=[WEATHER], tool_choice=choice))
        answer = folded(deltas)["choices"][0]
        assert (answer["finish_reason"], answer["message"]["content"]) == ("tool_calls", None)
        function = answer["message"]["tool_calls"][0]["function"]
        assert (function["name"], json.loads(function["arguments"])) == ("get_weather", {"city": "sandbox", "days": 1})

    async def test_a_directive_calls_a_tool_until_its_result_is_there(self, sandbox: Clocked) -> None:
        ask = {"role": "user", "content": 'Please [[tool:f {"a": [[1], [2]]}]]'}
        deltas = await sandbox.answer(call_of(Operation.CHAT, messages=[ask]))
        call = folded(deltas)["choices"][0]["message"]["tool_calls"][0]
        assert json.loads(call["function"]["arguments"]) == {"a": [[1], [2]]}
        rest = [
            {"role": "assistant", "tool_calls": [call]},
            {"role": "tool", "tool_call_id": call["id"], "content": "5"},
        ]
        assert said(await sandbox.answer(call_of(Operation.CHAT, messages=[ask, *rest])))

    async def test_auto_answers_in_words(self, sandbox: Clocked) -> None:
        assert said(await sandbox.answer(chat("Hi", tools=[WEATHER], tool_choice="auto")))

    async def test_a_tool_that_is_not_there_is_a_bad_request(self, sandbox: Clocked) -> None:
        with pytest.raises(BadRequest, match="not among the tools"):
            await sandbox.answer(chat("Hi", tools=[WEATHER], tool_choice={"function": {"name": "other"}}))


class TestSchemas:
    async def test_a_json_schema_format_gets_a_valid_instance(self, sandbox: Clocked) -> None:
        schema = WEATHER["function"]["parameters"]  # type: ignore[index]
        form = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
        assert json.loads(said(await sandbox.answer(chat("Hi", response_format=form)))) == {
            "city": "sandbox",
            "days": 1,
        }
        form = {"type": "json_object"}
        assert json.loads(said(await sandbox.answer(chat("Hi", response_format=form)))) == {
            "sandbox": True,
            "text": "Hi",
        }

    @pytest.mark.parametrize(
        "schema",
        [
            {"type": "object", "properties": {"a": {"enum": ["x", "y"]}, "b": {"const": 5}}},
            {"type": "array", "items": {"type": "string", "format": "date-time"}, "minItems": 2},
            {"type": "string", "minLength": 20, "maxLength": 25},
            {"type": "number", "exclusiveMinimum": 3, "multipleOf": 0.5},
            {"type": "integer", "minimum": 7, "multipleOf": 5},
            {"type": "integer", "maximum": -3},
            {"type": ["null", "string"]},
            {"anyOf": [{"$ref": "#/$defs/tree"}, {"type": "null"}], "$defs": {"tree": {"type": "object"}}},
            {"allOf": [{"properties": {"a": {"type": "boolean"}}}, {"required": ["a"]}], "type": "object"},
            {
                "$ref": "#/$defs/a",
                "$defs": {"a": {"type": "object", "properties": {"b": {"$ref": "#/$defs/c"}}}, "c": {}},
            },
            True,
        ],
    )
    def test_instances_are_valid(self, schema: Any) -> None:
        assert jsonschema_rs.is_valid(schema, make_instance(schema, param="x"))

    @pytest.mark.parametrize(
        "schema",
        [
            {"type": "string", "pattern": "^z+$"},
            {"$ref": "#"},
            {"$ref": "https://example.com/schema"},
            {"$ref": "#/nowhere"},
            {"type": "array", "minItems": 10**9},
            {"type": "string", "minLength": 10**9},
            {"type": 5},
            {"type": "integer", "multipleOf": "x"},
            {"type": "object", "required": 5},
            False,
        ],
    )
    def test_schemas_without_an_easy_instance_are_refused_soon(self, schema: Any) -> None:
        with pytest.raises(BadRequest, match="can't make an instance") as refused:
            make_instance(schema, param="tools")
        assert refused.value.param == "tools"


class TestPace:
    async def test_waits_are_where_they_were_asked_for(self, sandbox: Clocked) -> None:
        await sandbox.answer(chat("[[tokens:3]] [[latency:200ms]] [[first_token:1.5s]] [[per_token:20ms]]"))
        assert sandbox.waits == [0.2, 1.5, 0.02, 0.02]

    async def test_a_cut_comes_after_its_tokens(self, sandbox: Clocked) -> None:
        for text, count in [("[[cut:5]] [[tokens:9]]", 5), ("[[cut:0]]", 0), ("[[cut:9]] [[tokens:3]]", 3)]:
            deltas, error = await sandbox.until_error(chat(text, stream=True))
            assert isinstance(error, UpstreamFailed)
            assert len(deltas) == count

    async def test_a_hang_lasts_until_the_deadline(self, sandbox: Clocked) -> None:
        for text, count in [("[[hang]]", 0), ("[[hang:2]]", 2)]:
            sandbox.waits.clear()
            deltas, error = await sandbox.until_error(chat(text, stream=True))
            assert isinstance(error, CallTimeout)
            assert (len(deltas), sandbox.waits) == (count, [600.0])


class TestErrors:
    @pytest.mark.parametrize("name", FAILURES)
    async def test_each_error_is_the_real_one(self, sandbox: Clocked, name: str) -> None:
        deltas, error = await sandbox.until_error(chat(f"[[error:{name}]]", stream=True))
        assert deltas == []
        assert name in (str(error.status), error.code)
        assert error.retry_after_s == (1.0 if error.status in (429, 503) and name != "insufficient_quota" else None)

    async def test_metadata_steers_too(self, sandbox: Clocked) -> None:
        _, error = await sandbox.until_error(chat("Hi", {"sandbox": "[[error:429]]"}))
        assert error.status == 429

    @pytest.mark.parametrize("operation", [Operation.EMBEDDING, Operation.PREDICT])
    async def test_other_operations_fail_by_metadata(self, sandbox: Clocked, operation: Operation) -> None:
        body: Any = {"input": "a"} if operation is Operation.EMBEDDING else {"inputs": [1]}
        _, error = await sandbox.until_error(call_of(operation, {"sandbox": "[[error:503]]"}, **body))
        assert error.status == 503

    async def test_an_unknown_error_lists_the_known_ones(self, sandbox: Clocked) -> None:
        _, error = await sandbox.until_error(chat("[[error:teapot]]"))
        assert isinstance(error, BadRequest)
        assert all(name in error.message for name in FAILURES)


class TestDirectives:
    def test_an_unknown_one_lists_the_known_ones(self) -> None:
        with pytest.raises(BadRequest, match=r"no directive \[\[latencyy\]\]") as refused:
            read_directives("[[latencyy:5ms]]")
        assert all(f"[[{name}" in refused.value.message for name in KNOWN)

    @pytest.mark.parametrize(
        "text",
        [
            *("[[tokens]]", "[[tokens:x]]", "[[tokens:-1]]", "[[tokens:100001]]", "[[tokens:5", "[[tokens:²]]"),
            *("[[latency:5]]", "[[latency:601s]]", "[[latency:1e3s]]", "[[echo:5]]", "[[cut]]", "[[hang:x]]"),
            *("[[tool]]", "[[tool:f {]]", "[[tool:f 5]]", "[[tool:f {} x]]", "[[tool:f {}", "[[tool:f " + "[" * 5_000),
        ],
    )
    def test_one_that_makes_no_sense_shows_how_it_is_written(self, text: str) -> None:
        with pytest.raises(BadRequest, match="not well formed"):
            read_directives(text)

    @pytest.mark.parametrize("text", ["[[1, 2], [3, 4]]", "[[A Page]]", "[[", "]]", "[[]]", "[[a b]]", "[[x", "[x]"])
    def test_brackets_that_are_no_directive_are_text(self, text: str) -> None:
        assert read_directives(text).text == text

    def test_the_guide_names_every_directive_and_error(self) -> None:
        guide = GUIDE.read_text()
        assert set(re.findall(r"^\| `\[\[([a-z_]+)", guide, re.M)) == set(KNOWN)
        assert all(f"`{name}`" in guide for name in FAILURES)


class TestEmbeddings:
    async def test_vectors_are_stable_and_of_length_one(self, sandbox: Clocked) -> None:
        call = call_of(Operation.EMBEDDING, input=["one two", "three"])
        (delta,) = await sandbox.answer(call)
        assert delta.whole
        body = json.loads(delta.raw)
        first, second = [row["embedding"] for row in body["data"]]
        assert math.isclose(math.hypot(*first), 1.0)
        assert len(first) == len(second) == 256
        assert first != second
        assert body["usage"] == {"prompt_tokens": 3, "total_tokens": 3}
        assert delta.usage == Usage(3)
        assert (await sandbox.answer(call))[0].raw == delta.raw

    async def test_dimensions_and_encoding_are_honoured(self, sandbox: Clocked) -> None:
        forms: tuple[dict[str, Any], ...] = ({}, {"encoding_format": "base64"})
        plain, packed = [
            json.loads((await sandbox.answer(call_of(Operation.EMBEDDING, input="a", dimensions=8, **form)))[0].raw)
            for form in forms
        ]
        vector = struct.unpack("<8f", base64.b64decode(packed["data"][0]["embedding"]))
        assert vector == pytest.approx(plain["data"][0]["embedding"], abs=1e-6)
        with pytest.raises(BadRequest, match="at most 4096"):
            await sandbox.answer(call_of(Operation.EMBEDDING, input="a", dimensions=5_000))


async def test_a_prediction_is_its_own_input(sandbox: Clocked) -> None:
    (delta,) = await sandbox.answer(call_of(Operation.PREDICT, inputs=[{"a": 1}, 2]))
    assert (delta.whole, delta.value) == (True, [{"a": 1}, 2])
