"""The decisions of the llama.cpp backend that need no engine: queue and slots, tool calls, schemas, frames."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelport.backends.llamacpp import LlamaCppOptions, schemas, socket_path_for, wire
from modelport.backends.llamacpp.gguf import BrokenModel, Header, read_header
from modelport.backends.llamacpp.prompting import messages_for
from modelport.backends.llamacpp.sampling import sampling_for
from modelport.backends.llamacpp.slots import Entry, SlotTable, common_length
from modelport.backends.llamacpp.tools import ToolReader, parse
from modelport.catalog.defaults import default_models
from modelport.errors import BadRequest
from modelport.requests import ChatRequest, Message


def entry(tokens: list[int], tenant: str = "org_1", *, deadline_s: float = 100.0) -> Entry:
    return Entry(wire.Run(0, tokens, None), tenant, deadline_s, None)


class TestSlotTable:
    def test_all_or_none_are_admitted(self) -> None:
        table = SlotTable(2, 3)
        assert table.admit([entry([1])] * 3, 0.0)
        assert not table.admit([entry([1])] * 3, 0.0)
        assert table.queued == 3

    def test_a_slot_with_the_same_beginning_of_the_same_tenant_is_taken(self) -> None:
        table = SlotTable(3, 9)
        first, second, third = entry([1, 2, 3]), entry([7, 8, 9], "org_2"), entry([7, 8, 1])
        table.admit([first, second, third], 0.0)
        for now_s in (1.0, 2.0, 3.0):
            taken = table.take_next(now_s)
            assert taken is not None
            assert not taken[1]
        for used in (first, second, third):
            table.release(used, 4.0, whole=True)
        again = entry([7, 8, 9])
        table.admit([again], 0.0)
        assert table.take_next(5.0) == (again, True)
        assert again.slot == third.slot

    def test_another_tenants_cache_is_never_used(self) -> None:
        table = SlotTable(1, 9)
        first, second = entry([1, 2, 3]), entry([1, 2, 3], "org_2")
        table.admit([first, second], 0.0)
        table.take_next(1.0)
        table.release(first, 2.0, whole=True)
        assert table.take_next(3.0) == (second, False)

    def test_cancelled_entries_make_room_and_never_start(self) -> None:
        table = SlotTable(1, 1)
        first, second, third = entry([1]), entry([2]), entry([3])
        table.admit([first, second], 0.0)
        assert not table.admit([third], 0.0)
        table.cancel([first])
        assert table.admit([third], 0.0)
        taken = table.take_next(1.0)
        assert taken is not None
        assert taken[0] is second

    def test_expired_entries_are_told(self) -> None:
        table = SlotTable(1, 9)
        late, good = entry([1], deadline_s=1.0), entry([3])
        table.admit([late, good], 0.0)
        assert table.expired(2.0) == [late]
        assert table.queued == 1

    def test_retry_after_follows_the_measured_speed(self) -> None:
        table = SlotTable(1, 9)
        before = table.retry_after_s()
        for _ in range(20):
            slow = entry([1])
            table.admit([slow], 0.0)
            table.take_next(0.0)
            table.release(slow, 30.0, whole=True)
        assert table.retry_after_s() > before

    def test_who_would_wait_in_vain_is_refused_at_once(self) -> None:
        table = SlotTable(2, 9)
        table.seconds_per_run = 10.0
        assert table.admit([entry([1], deadline_s=1.0), entry([2], deadline_s=1.0)], 0.0)
        assert not table.admit([entry([3], deadline_s=4.0)], 0.0)
        assert table.admit([entry([3], deadline_s=6.0)], 0.0)
        assert not table.admit([entry([4], deadline_s=9.0)], 0.0)
        assert table.queued == 3

    @given(st.lists(st.integers(0, 2)), st.lists(st.integers(0, 2)))
    def test_common_length(self, first: list[int], second: list[int]) -> None:
        same = 0
        while same < min(len(first), len(second)) and first[same] == second[same]:
            same += 1
        assert common_length(first, second) == same


def read(pieces: list[str]) -> tuple[list[tuple[str, str]], str, ToolReader]:
    reader, calls, words = ToolReader(), [], ""
    for piece in pieces:
        for kind, index, text in reader.feed(piece):
            if kind == "start":
                assert index == len(calls)
                calls.append((text, ""))
            elif kind == "arguments":
                calls[index] = (calls[index][0], calls[index][1] + text)
            else:
                words += text
    return calls, words, reader


class TestToolReader:
    TEXT = (
        '<tool_call>\n{"name": "a", "arguments": {"x": "}\\"</tool_call>", "y": [{"z": {}}]}}\n</tool_call>\n'
        '<tool_call>\n{"name": "b", "arguments": {}}\n</tool_call>'
    )

    @given(st.lists(st.integers(0, len(TEXT))))
    def test_calls_are_read_however_the_text_is_cut(self, cuts: list[int]) -> None:
        edges = [0, *sorted(cuts), len(self.TEXT)]
        calls, words, _ = read([self.TEXT[a:b] for a, b in itertools.pairwise(edges)])
        assert words == ""
        assert [name for name, _ in calls] == ["a", "b"]
        assert json.loads(calls[0][1]) == {"x": '}"</tool_call>', "y": [{"z": {}}]}
        assert calls[1][1] == "{}"

    def test_a_repeated_call_ends_the_answer(self) -> None:
        one = '<tool_call>\n{"name": "a", "arguments": {}}\n</tool_call>'
        calls, _, reader = read([f"{one}\n{one}\n"])
        assert calls == [("a", "{}")]
        assert reader.ended

    def test_words_pass_through(self) -> None:
        assert read(["Hel", "lo <tool_call>"])[1] == "Hello <tool_call>"


class TestSchemas:
    def test_objects_are_closed_to_what_nobody_named(self) -> None:
        schema = {"type": "object", "properties": {"a": {"type": "object", "properties": {}}}}
        body = schemas.check(schema, param="p", strict=True).body
        assert body["additionalProperties"] is False
        assert body["properties"]["a"]["additionalProperties"] is False

    def test_objects_that_are_combined_stay_open(self) -> None:
        schema = {"allOf": [{"type": "object", "properties": {"a": {}}}, {"type": "object", "properties": {"b": {}}}]}
        body = schemas.check(schema, param="p", strict=True).body
        assert all("additionalProperties" not in part for part in body["allOf"])

    def test_what_can_not_be_enforced_is_left_out_where_that_is_allowed(self) -> None:
        schema = {"type": "array", "items": {"not": {"type": "null"}}, "uniqueItems": True, "title": "x"}
        assert schemas.check(schema, param="p", strict=False).body == {"type": "array", "items": {}}

    def test_recursion_through_properties_is_fine(self) -> None:
        schemas.check({"type": "object", "properties": {"next": {"$ref": "#"}}}, param="p", strict=True)

    @pytest.mark.parametrize("levels", [200])
    def test_depth_is_bounded(self, levels: int) -> None:
        schema: dict[str, object] = {}
        for _ in range(levels):
            schema = {"items": schema}
        with pytest.raises(BadRequest, match="levels"):
            schemas.check(schema, param="p", strict=False)

    def test_an_answer_that_is_no_json_does_not_hold(self) -> None:
        schema = schemas.any_object()
        assert schema.holds("{}")
        assert not schema.holds("[]")
        assert not schema.holds('{"a": ')


def test_frames_come_out_however_the_bytes_are_cut() -> None:
    messages: list[wire.Message] = [
        wire.Watch(),
        wire.Piece(0, "🦜", 1, 0, "stop", b"{}"),
        wire.Generate([wire.Run(0, [1, 2], None)], 5, {"stop": ["x"]}, 1.0, "org_1"),
    ]
    data = b"".join(map(wire.encode, messages))
    frames = wire.Frames()
    out = [message for at in range(len(data)) for message in frames.feed(data[at : at + 1])]
    assert out == messages


def test_a_frame_of_nonsense_is_an_error() -> None:
    for data in (b"\xff\xff\xff\xff", b"\0\0\0\1\xc1"):
        with pytest.raises(wire.FrameError):
            list(wire.Frames().feed(data))


def test_options_name_what_is_wrong() -> None:
    with pytest.raises(ValueError, match="slots"):
        LlamaCppOptions.parse({"slots": 0})
    with pytest.raises(ValueError, match="slotz"):
        LlamaCppOptions.parse({"slotz": 1})
    with pytest.raises(ValueError, match="warmth"):
        LlamaCppOptions.parse({"sampling": {"warmth": 1}})


def test_a_socket_has_a_short_name_whatever_the_data_directory(tmp_path: Path) -> None:
    deep = tmp_path / ("x" * 120)
    for folder in (tmp_path, deep):
        assert len(str(socket_path_for(folder, "model:1"))) < 100
    assert socket_path_for(deep, "a") != socket_path_for(deep, "b")


def test_system_messages_and_results_of_tools_become_what_every_template_knows() -> None:
    raw = [
        {"role": "developer", "content": "Be kind."},
        {"role": "system", "content": [{"type": "text", "text": "Be short."}]},
        {"role": "user", "content": "Weather?"},
        {"role": "assistant", "tool_calls": [{"function": {"name": "get", "arguments": "{}"}}]},
        {"role": "tool", "content": "sunny"},
        {"role": "tool", "content": "warm"},
    ]
    messages = messages_for([msgspec.convert(item, Message) for item in raw], tools=None, system_prompt="Never used.")
    assert [message["role"] for message in messages] == ["system", "user", "assistant", "user"]
    assert messages[0]["content"] == "Be kind.\n\nBe short."
    assert messages[2]["content"] == '<tool_call>\n{"name": "get", "arguments": {}}\n</tool_call>'
    assert "sunny" in messages[3]["content"]
    assert "warm" in messages[3]["content"]


def test_tool_grammar_names_every_tool() -> None:
    tools = parse([{"type": "function", "function": {"name": "one"}}], "auto", parallel=False)
    assert tools is not None
    assert "words" in tools.grammar
    assert '"one\\", ' not in tools.grammar.split("call_0:")[0]
    assert parse([{"type": "function", "function": {"name": "one"}}], "none", parallel=False) is None


def test_a_header_tells_the_memory(tmp_path: Path) -> None:
    assert Header("llama", 8192, 100, 1000).needed_bytes(10) == 200_002_000
    damaged = tmp_path / "x.gguf"
    damaged.write_bytes(b"GGUF" + b"\xff" * 40)
    with pytest.raises(BrokenModel):
        read_header(damaged)


def test_the_callers_sampling_wins_and_structure_is_not_held_against_an_answer() -> None:
    options = LlamaCppOptions.parse({"sampling": {"temperature": 0.2, "dry_multiplier": 0.8}})
    messages = [{"role": "user", "content": "Hi"}]
    request = msgspec.convert({"model": "m", "messages": messages, "temperature": 0}, ChatRequest)
    body = sampling_for(request, options)
    assert (body["temperature"], body["dry_multiplier"]) == (0, 0.8)
    assert sampling_for(request, options, structured=True)["dry_multiplier"] == 0


def test_the_default_models_options_are_known() -> None:
    for row in default_models():
        if row.backend == "llamacpp":
            assert LlamaCppOptions.parse(row.options).system_prompt
