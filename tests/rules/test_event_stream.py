"""An upstream's stream on its way through: however it is cut into reads and written, the caller sees the same."""

from __future__ import annotations

import itertools
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelport.backends.openai.stream import EventStream
from modelport.backends.upstream.frames import MAX_EVENT_BYTES
from modelport.calls import Usage
from tests.upstream import chat_chunk, chat_events, event

USAGE = {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10}
TRAP = 'x "model":"upstream-model" ,"usage":null "error" data: [DONE]\n\ndata: {"choices":[]} "finish_reason":"stop"'


def run(parts: list[bytes], *, keep_usage: bool = False) -> tuple[bytes, EventStream]:
    stream = EventStream("up", public_model="public", keep_usage=keep_usage)
    out = b""
    for part in parts:
        out += stream.feed(part)
        if stream.done or stream.error:
            break
    return out + stream.end(input_tokens=5), stream


def content(out: bytes) -> str:
    chunks = [json.loads(line[6:]) for line in out.decode().split("\n") if line]
    return "".join(c["choices"][0]["delta"].get("content") or "" for c in chunks if c["choices"])


def cut(data: bytes, places: list[int]) -> list[bytes]:
    bounds = [0, *sorted({place % (len(data) + 1) for place in places}), len(data)]
    return [data[a:b] for a, b in itertools.pairwise(bounds) if a < b]


TOKENS = st.lists(st.one_of(st.text(min_size=1), st.just(TRAP)), min_size=1, max_size=8)
PLACES = st.lists(st.integers(0, 10_000), max_size=12)


@given(TOKENS, PLACES, st.booleans(), st.booleans(), st.booleans())
def test_the_cuts_between_reads_make_no_difference(
    tokens: list[str], places: list[int], keep_usage: bool, reported: bool, crlf: bool
) -> None:
    data = b"".join(chat_events(tokens, usage=USAGE if reported else None))
    if crlf:
        data = data.replace(b"\n", b"\r\n")
    whole, one = run([data], keep_usage=keep_usage)
    pieces, many = run(cut(data, places), keep_usage=keep_usage)
    assert whole == pieces
    assert one.error is None
    assert many.error is None
    assert one.usage == many.usage == (Usage(7, 3) if reported else None)
    assert one.pieces == many.pieces == len(tokens)
    assert content(whole) == "".join(tokens)


@given(TOKENS, PLACES)
def test_text_that_looks_like_a_member_is_never_touched(tokens: list[str], places: list[int]) -> None:
    data = b"".join(chat_events([TRAP, *tokens], usage=USAGE))
    out, _ = run(cut(data, places))
    chunks = [json.loads(line[6:]) for line in out.decode().split("\n") if line]
    assert content(out) == TRAP + "".join(tokens)
    assert all(chunk["model"] == "public" and "usage" not in chunk for chunk in chunks)


def _spaced(body: Any) -> bytes:
    return b"data: " + json.dumps(body).encode() + b"\n\n"


def _several_lines(body: Any) -> bytes:
    return "".join(f"data:{line}\n" for line in json.dumps(body, indent=1).split("\n")).encode() + b"\n"


def _named(body: Any) -> bytes:
    return b"id: 5\nevent: message\ndata:" + json.dumps(body).encode() + b"\n: comment\n\n"


def _usage_first(body: Any) -> bytes:
    return event({"usage": None, **body} if body["choices"] else body)


@pytest.mark.parametrize("write", [_spaced, _several_lines, _named, _usage_first])
@pytest.mark.parametrize("line_end", [b"\n", b"\r\n", b"\r"])
@pytest.mark.parametrize("step", [1, 7, 10_000])
def test_other_servers_ways_of_writing_are_understood(write: Any, line_end: bytes, step: int) -> None:
    bodies = [{**chat_chunk({"content": text}), "usage": None} for text in "abc"]
    bodies.append({**chat_chunk({}, finish="stop"), "usage": None})
    bodies.append({**chat_chunk({}), "choices": [], "usage": USAGE})
    data = b"\xef\xbb\xbf: hello\n\n" + b"".join(map(write, bodies)) + b"data:[DONE]\n\n"
    data = data.replace(b"\n", line_end)
    out, stream = run([data[i : i + step] for i in range(0, len(data), step)])
    assert stream.error is None
    assert content(out) == "abc"
    assert stream.usage == Usage(7, 3)
    assert b"usage" not in out
    assert b"upstream-model" not in out
    assert all(line.startswith(b"data: {") for line in out.split(b"\n") if line)


def test_an_azure_preamble_without_choices_does_not_confuse() -> None:
    preamble = event({"choices": [], "model": "", "id": "", "prompt_filter_results": []})
    out, stream = run([preamble, *chat_events(["a", "b"], usage=USAGE)])
    assert (content(out), stream.error, stream.pieces) == ("ab", None, 2)
    assert b"upstream-model" not in out


def test_usage_on_every_chunk_counts_up_and_is_taken_out() -> None:
    """vLLM's continuous usage: the last one is the total."""
    parts = [event({**chat_chunk({"content": "a"}), "usage": {**USAGE, "completion_tokens": n}}) for n in (1, 2)]
    parts.append(event({**chat_chunk({}, finish="stop"), "usage": USAGE}))
    out, stream = run(parts)
    assert (content(out), stream.usage, b"usage" in out) == ("aa", Usage(7, 3), False)


def test_tool_calls_and_reasoning_count_as_output() -> None:
    deltas: list[dict[str, Any]] = [{"role": "assistant", "content": None}, {"reasoning_content": "hm"}]
    deltas.append({"tool_calls": [{"index": 0, "function": {"arguments": "{"}}]})
    _, stream = run([event(chat_chunk(delta)) for delta in deltas])
    assert stream.pieces == 2


def test_an_end_that_is_no_end_is_an_error_and_done_ends_everything() -> None:
    assert run(chat_events(["a"])[:2])[1].error is not None
    out, stream = run([*chat_events(["a"]), event(chat_chunk({"content": "after"}))])
    assert (content(out), stream.error) == ("a", None)


def test_a_last_event_without_its_blank_line_still_counts() -> None:
    events = chat_events(["a"])
    out, stream = run([*events[:-1], b"data: [DONE]"])
    assert (stream.done, stream.error, content(out)) == (True, None, "a")
    assert run([*events[:2], events[2].rstrip(b"\n")])[1].error is None


def test_an_event_without_end_is_cut_off() -> None:
    stream = EventStream("up", public_model="public", keep_usage=False)
    for _ in range(MAX_EVENT_BYTES // 500_000 + 1):
        stream.feed(b"x" * 500_000)
    assert stream.error is not None
