"""Pieces of an upstream's stream go straight to the client, and are charged, bounded and cut as if they did not."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable

import pytest
import pytest_asyncio

from tests.rawhttp import RawClient, chat
from tests.serving import Server
from tests.upstream import (
    Line,
    Received,
    Step,
    Upstream,
    chat_chunk,
    chat_events,
    chunk,
    drop,
    event,
    hang,
    head,
    pause,
    raw,
    then,
    wait_for,
)
from tests.waiting import wait_until

pytestmark = pytest.mark.asyncio(loop_scope="module")
CONFIG = """
default_models = false
[[upstreams]]
name = "far"
base_url = "{url}"
[[models]]
id = "far"
targets = [{{ upstream = "far" }}]
prices = {{ input_usd_per_mtok = "1", output_usd_per_mtok = "2" }}
[[models]]
id = "kept"
targets = [{{ upstream = "far" }}]
cache = {{ ttl_s = 60 }}
prices = {{ input_usd_per_mtok = "1", output_usd_per_mtok = "2" }}
"""
OPENING = raw(head(200, content_type="text/event-stream", transfer_encoding="chunked"))
END = raw(b"0\r\n\r\n")
WORDS = [f"w{number:03d} " for number in range(40)]
DONE = b'data: {"choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}\n\ndata: [DONE]\n\n'
USAGE = {"prompt_tokens": 11, "completion_tokens": 70, "total_tokens": 81}


def one_by_one(parts: list[bytes], last: Step = END) -> Step:
    """Each part in a read of its own, as models write them."""
    steps = [then(raw(chunk(part)), pause(0.002)) for part in parts]
    return then(OPENING, *steps, last)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def upstream() -> AsyncIterator[Upstream]:
    async with Upstream() as upstream:
        yield upstream


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def server(upstream: Upstream, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Server]:
    made = Server(tmp_path_factory.mktemp("relay"), config=CONFIG.format(url=upstream.url))
    await asyncio.to_thread(made.start)
    yield made
    await asyncio.to_thread(made.stop)


def read_until(client: RawClient, word: str) -> str:
    """The call's id, once `word` has arrived."""
    call_id = ""
    while word.encode() not in (line := client.line()):
        assert line, "the stream ended before the word"
        if line.lower().startswith(b"x-request-id:"):
            call_id = line.split(b":")[1].strip().decode()
    return call_id


def ask(server: Server, text: str = "go on", *, model: str = "far") -> bytes:
    return chat(server.credentials["api_key"], text, model=model, stream=True)


async def receipt(server: Server, call_id: str) -> dict[str, object]:
    status, found = await asyncio.to_thread(server.get, f"/v1/requests/{call_id}", key=server.credentials["api_key"])
    assert status == 200, found
    return dict(found)


async def test_every_piece_comes_once_in_order_and_the_upstreams_count_is_charged(
    server: Server, upstream: Upstream
) -> None:
    upstream.plan(one_by_one(chat_events(WORDS, usage=USAGE)))
    with RawClient(server.port) as client:
        answer = await asyncio.to_thread(client.send(ask(server)).answer)
    events = [json.loads(line[6:]) for line in answer.body.decode().split("\n") if line.startswith("data: {")]
    assert [one["choices"][0]["delta"].get("content") or "" for one in events][1:-1] == WORDS
    assert answer.body.endswith(b"data: [DONE]\n\n")
    found = await receipt(server, answer.headers["x-request-id"])
    assert (found["input_tokens"], found["output_tokens"], found["exact"]) == (11, 70, True)


async def test_a_hang_up_is_charged_for_the_pieces_that_had_come(server: Server, upstream: Upstream) -> None:
    upstream.plan(one_by_one(chat_events(WORDS)[:21], hang()))
    with RawClient(server.port) as client:
        client.send(ask(server))
        call_id = await asyncio.to_thread(read_until, client, WORDS[19])
    await wait_until(lambda: upstream.open == 0, "the upstream is hung up on")
    found = await receipt(server, call_id)
    assert (found["status"], found["output_tokens"], found["exact"]) == (499, 20, False)


async def test_an_answer_that_is_stored_meanwhile_comes_the_same_way_and_the_same_again(
    server: Server, upstream: Upstream
) -> None:
    upstream.plan(one_by_one(chat_events(WORDS)))
    answers = []
    for _ in range(2):
        with RawClient(server.port) as client:
            answers.append(await asyncio.to_thread(client.send(ask(server, "keep", model="kept")).answer))
    assert [answer.headers["x-cache"] for answer in answers] == ["MISS", "HIT"]
    assert answers[0].body == answers[1].body
    assert [word in answers[0].body.decode() for word in WORDS] == [True] * len(WORDS)
    found = await receipt(server, answers[0].headers["x-request-id"])
    assert (found["output_tokens"], found["exact"]) == (len(WORDS), False)


async def test_one_hang_up_of_two_listeners_cuts_nothing_and_pays_for_all(server: Server, upstream: Upstream) -> None:
    """The call that began the answer leaves; the other gets all of it, and the first owes it."""
    go_on = asyncio.Event()
    events = chat_events(WORDS)
    upstream.plan(then(one_by_one(events[:11], wait_for(go_on)), *(raw(chunk(part)) for part in events[11:]), END))
    with RawClient(server.port) as first, RawClient(server.port) as second:
        first.send(ask(server, "two", model="kept"))
        first_id = await asyncio.to_thread(read_until, first, WORDS[9])
        second.send(ask(server, "two", model="kept"))
        await asyncio.to_thread(read_until, second, WORDS[9])
        first.close()
        go_on.set()
        body = await asyncio.to_thread(_rest, second)
    assert all(word.encode() in body for word in WORDS[10:])

    async def settled() -> bool:
        status, _ = await asyncio.to_thread(server.get, f"/v1/requests/{first_id}", key=server.credentials["api_key"])
        return status == 200 and (await receipt(server, first_id))["output_tokens"] == len(WORDS)

    await wait_until(settled, "the first is charged for the whole answer")


async def test_a_hang_up_on_an_answer_that_would_be_stored_is_charged_for_what_had_come(
    server: Server, upstream: Upstream
) -> None:
    upstream.plan(one_by_one(chat_events(WORDS)[:21], hang()))
    with RawClient(server.port) as client:
        client.send(ask(server, "cut", model="kept"))
        call_id = await asyncio.to_thread(read_until, client, WORDS[19])
    await wait_until(lambda: upstream.open == 0, "the upstream is hung up on")
    found = await receipt(server, call_id)
    assert (found["status"], found["output_tokens"]) == (499, 20)


async def test_an_upstream_that_breaks_off_ends_the_stream_with_an_error(server: Server, upstream: Upstream) -> None:
    upstream.plan(one_by_one(chat_events(WORDS)[:31], drop()))
    with RawClient(server.port) as client:
        answer = await asyncio.to_thread(client.send(ask(server)).answer)
    assert WORDS[29].encode() in answer.body
    assert b'"error"' in answer.body.split(b"\n\n")[-2]
    assert (await receipt(server, answer.headers["x-request-id"]))["cost_usd"] == "0.00"


async def test_a_client_that_reads_slowly_holds_the_upstream_back(server: Server, upstream: Upstream) -> None:
    """Nothing grows without end between the two, and what was held back comes when the client reads on."""
    sent = 0
    piece = chunk(event(chat_chunk({"content": "x" * 30_000})))

    async def pour(line: Line, request: Received) -> None:
        nonlocal sent
        for _ in range(2_000):
            await line.send(piece)
            sent += 1

    upstream.plan(then(OPENING, raw(chunk(b"".join(chat_events(["w", "w"])[:3]))), pour, raw(chunk(DONE)), END))
    with RawClient(server.port) as client:
        client.send(ask(server))
        await asyncio.to_thread(read_until, client, '"w"')
        await _stalled(lambda: sent)
        assert sent < 1_900, "the upstream was read although nobody read the answer"
        answer = await asyncio.to_thread(_rest, client)
    assert answer.count(b"x" * 30_000) == 2_000


async def _stalled(count: Callable[[], int]) -> None:
    """Return when `count` has stopped to grow."""
    seen: list[int] = []

    def still() -> bool:
        seen.append(count())
        return len(seen) > 20 and len(set(seen[-20:])) == 1

    await wait_until(still, "the upstream is held back")


def _rest(client: RawClient) -> bytes:
    body = b""
    while not (line := client.line()).startswith(b"data: [DONE]"):
        assert line, "the stream broke off"
        body += line
    return body
