"""The Gemini dialect: what each chat becomes, and what each answer."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelport.backends.gemini.refusals import gemini_refusal
from modelport.calls import Call, Caller, Operation, Usage
from modelport.dialect.gemini.to_chunks import ChunkTranslator, usage_from
from modelport.dialect.gemini.to_contents import contents_body
from modelport.dialect.openai import events, fold
from modelport.errors import (
    BadRequest,
    ContextTooLong,
    ModelportError,
    Overloaded,
    UpstreamFailed,
    UpstreamRejected,
)
from modelport.requests import ChatRequest
from tests.gemini_upstream import USAGE, call, candidate, content

CALLER = Caller("org_a", "proj_a", "key_a", "live", frozenset(), "free")
HELLO: list[Any] = [{"role": "user", "content": "Hi"}]
TOO_LONG = "The input token count (9) exceeds the maximum number of tokens allowed (8)."
WEATHER = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}, "strict": True}}


def body_of(messages: list[Any] = HELLO, *, model: str = "gemini-3-x", bound: int | None = None, **body: Any) -> Any:
    raw = msgspec.json.encode({"model": "m", "messages": messages} | body)
    request = msgspec.json.decode(raw, type=ChatRequest)
    fields = msgspec.json.decode(raw, type=dict[str, msgspec.Raw])
    return json.loads(json.dumps(contents_body(request, fields, model=model, max_output_tokens=bound)))


def translator(**body: Any) -> ChunkTranslator:
    request = msgspec.convert({"model": "public", "messages": HELLO} | body, ChatRequest)
    made = Call(
        id="req_" + "1" * 32,
        caller=CALLER,
        endpoint="/v1/chat/completions",
        operation=Operation.CHAT,
        model="public",
        request=request,
        fields={},
        started_us=0,
        started_s=0.0,
        deadline_s=600.0,
        stream=bool(request.stream),
    )
    return ChunkTranslator(made, name="up")


def message_of(*bodies: Any) -> dict[str, Any]:
    """The first choice that these events add up to."""
    answer = translator()
    raw = b"".join(answer.feed(body) for body in bodies)
    usage = answer.usage or Usage()
    choice: dict[str, Any] = json.loads(fold([raw, answer.end(usage)], usage))["choices"][0]
    return choice


class TestRequest:
    def test_a_chat_is_contents_and_a_system_instruction(self) -> None:
        body = body_of(
            [
                {"role": "system", "content": "Be brief."},
                {"role": "user", "content": "Hi"},
                {"role": "assistant", "content": "Hello."},
                {"role": "developer", "content": "Rhyme."},
                {"role": "user", "content": [{"type": "text", "text": "And"}, {"type": "text", "text": "now?"}]},
            ],
            bound=99,
        )
        assert body == {
            "systemInstruction": {"parts": [{"text": "Be brief."}, {"text": "Rhyme."}]},
            "contents": [
                {"role": "user", "parts": [{"text": "Hi"}]},
                {"role": "model", "parts": [{"text": "Hello."}]},
                {"role": "user", "parts": [{"text": "And"}, {"text": "now?"}]},
            ],
            "generationConfig": {"maxOutputTokens": 99},
        }

    def test_settings_have_their_counterparts(self) -> None:
        config = body_of(
            max_tokens=9, temperature=0.5, top_p=0.9, stop="X", n=2, seed=7, presence_penalty=1, frequency_penalty=-1
        )["generationConfig"]
        assert config == {
            "maxOutputTokens": 9,
            "temperature": 0.5,
            "topP": 0.9,
            "stopSequences": ["X"],
            "candidateCount": 2,
            "seed": 7,
            "presencePenalty": 1,
            "frequencyPenalty": -1,
        }

    def test_a_schema_for_the_answer_is_passed_on_whole(self) -> None:
        schema = {"type": "object", "properties": {"a": {"$ref": "#/$defs/A"}}, "$defs": {"A": {"type": "integer"}}}
        form = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
        config = body_of(response_format=form)["generationConfig"]
        assert config == {"responseMimeType": "application/json", "responseJsonSchema": schema}
        assert body_of(response_format={"type": "json_object"})["generationConfig"] == {
            "responseMimeType": "application/json"
        }

    @pytest.mark.parametrize(
        ("model", "effort", "config"),
        [
            ("gemini-2.5-flash", "none", {"thinkingBudget": 0}),
            ("gemini-2.5-pro", "high", {"thinkingBudget": 24_576}),
            ("gemini-3.8-flash", "low", {"thinkingLevel": "LOW"}),
            ("gemini-4-argon", "none", {"thinkingLevel": "MINIMAL"}),
        ],
    )
    def test_effort_is_told_as_the_model_knows_it(self, model: str, effort: str, config: Any) -> None:
        assert body_of(model=model, reasoning_effort=effort)["generationConfig"]["thinkingConfig"] == config

    def test_what_googles_own_openai_door_takes_is_taken(self) -> None:
        google = {"thinking_config": {"include_thoughts": True}, "cached_content": "c", "safety_settings": [{"a": 1}]}
        body = body_of(extra_body={"google": google}, reasoning_effort="low")
        assert body["generationConfig"] == {"thinkingConfig": {"include_thoughts": True}}
        assert (body["cachedContent"], body["safetySettings"]) == ("c", [{"a": 1}])

    def test_pictures_sound_and_files_are_data_or_addresses(self) -> None:
        parts = [
            {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}},
            {"type": "image_url", "image_url": {"url": "https://example.com/a.jpg"}},
            {"type": "input_audio", "input_audio": {"data": "BBBB", "format": "mp3"}},
            {"type": "file", "file": {"file_data": "data:application/pdf;name=x;base64,CCCC"}},
        ]
        assert body_of([{"role": "user", "content": parts}])["contents"][0]["parts"] == [
            {"inlineData": {"mimeType": "image/png", "data": "AAAA"}},
            {"fileData": {"fileUri": "https://example.com/a.jpg", "mimeType": "image/jpeg"}},
            {"inlineData": {"mimeType": "audio/mp3", "data": "BBBB"}},
            {"inlineData": {"mimeType": "application/pdf", "data": "CCCC"}},
        ]

    @pytest.mark.parametrize(
        ("choice", "config"),
        [
            (None, {"mode": "AUTO"}),
            ("none", {"mode": "NONE"}),
            ("required", {"mode": "ANY"}),
            (
                {"type": "function", "function": {"name": "weather"}},
                {"mode": "ANY", "allowedFunctionNames": ["weather"]},
            ),
            (
                {"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": [WEATHER]}},
                {"mode": "VALIDATED", "allowedFunctionNames": ["weather"]},
            ),
        ],
    )
    def test_tools_are_declared_and_chosen(self, choice: Any, config: Any) -> None:
        body = body_of(tools=[WEATHER], **({} if choice is None else {"tool_choice": choice}))
        (declaration,) = body["tools"][0]["functionDeclarations"]
        assert declaration == {"name": "weather", "description": "", "parametersJsonSchema": {"type": "object"}}
        assert body["toolConfig"] == {"functionCallingConfig": config}

    def test_calls_and_their_answers_are_turns_with_names_and_signatures(self) -> None:
        calls = [
            {
                "id": "a",
                "type": "function",
                "function": {"name": "f", "arguments": '{"x":1}'},
                "extra_content": {"google": {"thought_signature": "c2ln"}},
            },
            {"id": "b", "type": "function", "function": {"name": "g", "arguments": ""}},
        ]
        messages = [
            *HELLO,
            {"role": "assistant", "content": None, "tool_calls": calls},
            {"role": "tool", "tool_call_id": "a", "content": '{"y":2}'},
            {"role": "tool", "tool_call_id": "b", "content": "snow"},
        ]
        _, turn, answers = body_of(messages)["contents"]
        assert turn == {
            "role": "model",
            "parts": [
                {"functionCall": {"name": "f", "args": {"x": 1}, "id": "a"}, "thoughtSignature": "c2ln"},
                {"functionCall": {"name": "g", "args": {}, "id": "b"}},
            ],
        }
        assert answers["role"] == "user"
        assert answers["parts"] == [
            {"functionResponse": {"name": "f", "response": {"y": 2}, "id": "a"}},
            {"functionResponse": {"name": "g", "response": {"result": "snow"}, "id": "b"}},
        ]

    def test_a_call_that_lost_its_signature_passes_where_one_is_demanded(self) -> None:
        lost = [{"id": "a", "type": "function", "function": {"name": "f", "arguments": "{}"}}]
        messages = [
            *HELLO,
            {"role": "assistant", "tool_calls": lost},
            {"role": "tool", "tool_call_id": "a", "content": "1"},
        ]
        assert "thoughtSignature" in body_of(messages)["contents"][1]["parts"][0]
        assert "thoughtSignature" not in body_of(messages, model="gemini-2.5-flash")["contents"][1]["parts"][0]

    @pytest.mark.parametrize(
        ("messages", "members", "param"),
        [
            (HELLO, {"logprobs": True}, "logprobs"),
            (HELLO, {"logit_bias": {"1": 1}}, "logit_bias"),
            (HELLO, {"reasoning_effort": "huge"}, "reasoning_effort"),
            (HELLO, {"tools": [{"type": "custom"}]}, "tools"),
            (HELLO, {"tools": [WEATHER], "tool_choice": "any"}, "tool_choice"),
            ([{"role": "system", "content": "x"}], {}, "messages"),
            ([{"role": "tool", "tool_call_id": "x", "content": "x"}], {}, "messages[0].tool_call_id"),
            ([{"role": "user", "content": [{"type": "video"}]}], {}, "messages[0].content[0]"),
            (
                [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "file:///x"}}]}],
                {},
                "messages[0].content[0]",
            ),
            (
                [{"role": "assistant", "tool_calls": [{"id": "a", "function": {"name": "f", "arguments": "[1]"}}]}],
                {},
                "messages[0].tool_calls",
            ),
        ],
    )
    def test_what_gemini_cannot_do_is_refused_by_name(self, messages: Any, members: Any, param: str) -> None:
        with pytest.raises(BadRequest) as caught:
            body_of(messages, **members)
        assert caught.value.param == param

    def test_members_that_help_only_the_server_are_left_out(self) -> None:
        plain = body_of()
        assert plain == body_of(user="u", metadata={"a": "b"}, logprobs=False, store=True, odd={"x": 1}, logit_bias={})


class TestAnswer:
    def test_text_comes_as_chunks_with_the_exact_usage(self) -> None:
        answer = translator(stream=True, stream_options={"include_usage": True})
        raw = answer.feed(content(candidate("Hel"), usage={"promptTokenCount": 7}))
        assert not answer.finished
        raw += answer.feed(content(candidate("lo", finish="STOP")))
        assert answer.usage == Usage(7, 3)
        *chunks, last = events(raw + answer.end(Usage(7, 3)))
        deltas = [chunk["choices"][0]["delta"] for chunk in chunks]
        assert deltas[0] == {"role": "assistant", "content": "", "refusal": None}
        assert [delta.get("content") for delta in deltas] == ["", "Hel", "lo", None]
        assert chunks[-1]["choices"][0]["finish_reason"] == "stop"
        assert {chunk["system_fingerprint"] for chunk in chunks} == {"gemini-3-x"}
        assert (last["choices"], last["usage"]["total_tokens"]) == ([], 10)

    def test_calls_have_ids_arguments_and_their_signature(self) -> None:
        parts = [
            call("f", {"x": 1}, thoughtSignature="c2ln"),
            call("g", {}),
            {"functionCall": {"name": "h", "id": "own"}},
        ]
        choice = message_of(content(candidate(*parts, finish="STOP")))
        first, second, third = choice["message"]["tool_calls"]
        assert choice["finish_reason"] == "tool_calls"
        assert first["function"] == {"name": "f", "arguments": '{"x":1}'}
        assert first["extra_content"] == {"google": {"thought_signature": "c2ln"}}
        assert "extra_content" not in second
        assert first["id"] != second["id"]
        assert (third["id"], third["function"]["arguments"]) == ("own", "{}")

    def test_thoughts_are_apart_from_the_answer(self) -> None:
        choice = message_of(content(candidate({"text": "Hm.", "thought": True}, "Yes.", finish="STOP")))
        assert choice["message"]["reasoning_content"] == "Hm."
        assert choice["message"]["content"] == "Yes."

    @pytest.mark.parametrize(
        ("reason", "finish"),
        [
            ("STOP", "stop"),
            ("MAX_TOKENS", "length"),
            ("SAFETY", "content_filter"),
            ("RECITATION", "content_filter"),
            ("PROHIBITED_CONTENT", "content_filter"),
            ("OTHER", "stop"),
        ],
    )
    def test_each_end_has_its_word(self, reason: str, finish: str) -> None:
        assert message_of(content(candidate("x", finish=reason)))["finish_reason"] == finish

    def test_an_end_without_an_answer_is_a_failure(self) -> None:
        with pytest.raises(UpstreamFailed, match="MALFORMED_FUNCTION_CALL"):
            translator().feed(content(candidate(finish="MALFORMED_FUNCTION_CALL")))

    def test_a_blocked_prompt_is_refused_with_the_code_that_callers_know(self) -> None:
        with pytest.raises(UpstreamRejected) as caught:
            translator().feed({"promptFeedback": {"blockReason": "SAFETY"}, "usageMetadata": USAGE})
        assert (caught.value.status, caught.value.code) == (400, "content_filter")

    def test_several_candidates_are_choices(self) -> None:
        answer = translator()
        answer.feed(content(candidate("a", index=0, finish="STOP"), candidate("b", index=1)))
        assert not answer.finished
        answer.feed(content(candidate("c", index=1, finish="STOP")))
        assert answer.finished

    def test_an_answer_without_an_end_is_a_failure(self) -> None:
        answer = translator()
        answer.feed(content(candidate("Hel")))
        with pytest.raises(UpstreamFailed, match="too early"):
            answer.end(Usage())
        with pytest.raises(UpstreamFailed, match="too early"):
            translator().end(Usage())

    def test_usage_counts_thoughts_and_tools_and_what_was_cached(self) -> None:
        reported = USAGE | {"thoughtsTokenCount": 5, "cachedContentTokenCount": 4, "toolUsePromptTokenCount": 2}
        assert usage_from(reported) == Usage(9, 8, cached_tokens=4, reasoning_tokens=5)
        assert usage_from(None) is None
        assert usage_from({"promptTokenCount": "7"}) == Usage()


class TestRefusals:
    @pytest.mark.parametrize(
        ("status", "error", "kind", "text"),
        [
            (400, {"message": "Bad.", "details": [{"reason": "API_KEY_INVALID"}]}, UpstreamFailed, "credentials"),
            (
                400,
                {"message": "The input token count (9) exceeds the maximum number of tokens allowed (8)."},
                ContextTooLong,
                "9",
            ),
            (400, {"message": "Bad.", "code": 400, "status": "INVALID_ARGUMENT"}, UpstreamRejected, "Bad."),
            (403, {"message": "No."}, UpstreamFailed, "credentials"),
            (503, {"message": "Overloaded."}, UpstreamFailed, "failed"),
        ],
    )
    def test_each_refusal_has_its_class(self, status: int, error: Any, kind: type[ModelportError], text: str) -> None:
        found = gemini_refusal("up", status, json.dumps({"error": error}).encode())
        assert isinstance(found, kind)
        assert text in found.message

    def test_when_to_come_back_is_read_from_the_body(self) -> None:
        body = json.dumps({"error": {"message": "x", "details": [{"retryDelay": "7.5s"}]}}).encode()
        found = gemini_refusal("up", 429, body)
        assert isinstance(found, Overloaded)
        assert found.retry_after_s == 7.5


_ODD = st.none() | st.integers() | st.text(max_size=3) | st.lists(st.integers(), max_size=2) | st.just({})
_PART = st.fixed_dictionaries(
    {},
    optional={
        "text": st.text(max_size=3) | _ODD,
        "thought": st.booleans() | _ODD,
        "functionCall": st.fixed_dictionaries({}, optional={"name": _ODD, "args": _ODD, "id": _ODD}) | _ODD,
        "thoughtSignature": _ODD,
    },
)
_CANDIDATE = st.fixed_dictionaries(
    {},
    optional={
        "index": st.integers(0, 2) | _ODD,
        "content": st.fixed_dictionaries({}, optional={"parts": st.lists(_PART | _ODD, max_size=3) | _ODD}) | _ODD,
        "finishReason": st.sampled_from(["STOP", "MAX_TOKENS", "SAFETY"]) | _ODD,
    },
)
_EVENT = st.fixed_dictionaries(
    {},
    optional={
        "candidates": st.lists(_CANDIDATE | _ODD, max_size=2) | _ODD,
        "usageMetadata": _ODD,
        "promptFeedback": _ODD,
    },
)


@given(st.lists(_EVENT | _ODD, max_size=4))
def test_whatever_comes_is_an_answer_or_an_error_of_ours(bodies: list[Any]) -> None:
    """Nothing that an upstream sends is a fault of ours, and every chunk is whole."""
    answer, raw, status = translator(stream=True), b"", 200
    try:
        for body in bodies:
            raw += answer.feed(body)
        raw += answer.end(Usage())
    except ModelportError as error:
        status = error.status
    assert status in (200, 400, 502)
    assert all(chunk["object"] == "chat.completion.chunk" for chunk in events(raw))
