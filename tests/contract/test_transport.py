"""The pool against a real server: what a well-behaved upstream gets and gives."""

from __future__ import annotations

import asyncio
import gc
import hashlib

import pytest

from modelport.backends.transport import HttpPool, Response, Timeouts, header_block
from modelport.errors import Overloaded, UpstreamFailed
from modelport.kit.gathering import gathering_of
from tests.upstream import Line, Received, Upstream, chunk, drop, hang, head, json_answer, raw, then, wait_for
from tests.waiting import wait_until

PATIENT = Timeouts(connect_s=10, first_byte_s=30, between_bytes_s=30, total_s=60)


def pool_for(upstream: Upstream, *, max_connections: int = 8, max_body_bytes: int = 1_000_000) -> HttpPool:
    return HttpPool("up", upstream.url, max_connections=max_connections, max_body_bytes=max_body_bytes)


async def post(pool: HttpPool, body: bytes = b"{}", *, timeouts: Timeouts = PATIENT) -> Response:
    return await pool.request(b"POST", b"/x", body=body, timeouts=timeouts)


async def fetch(pool: HttpPool, body: bytes = b"{}") -> bytes:
    response = await post(pool, body)
    try:
        return await response.read()
    finally:
        response.close()


async def test_a_request_arrives_whole_and_the_answer_comes_back() -> None:
    async with Upstream() as upstream:
        pool = pool_for(upstream)
        upstream.plan(json_answer(b'{"a":1}', x_odd="yes"))
        headers = header_block([("authorization", "Bearer k"), ("x-one", "1")])
        response = await pool.request(b"POST", b"/chat", headers=headers, body=b"hello", timeouts=PATIENT)
        assert (response.status, response.header(b"x-odd"), response.header(b"x-none")) == (200, b"yes", None)
        assert await response.read() == b'{"a":1}'
        request = upstream.requests[0]
        assert (request.method, request.path, request.body) == ("POST", "/v1/chat", b"hello")
        assert request.headers["authorization"] == "Bearer k"
        assert request.headers["host"] == upstream.url[7:-3]
        await pool.aclose()


async def test_one_connection_serves_calls_that_follow_one_another() -> None:
    async with Upstream() as upstream:
        pool = pool_for(upstream)
        for _ in range(5):
            await fetch(pool)
        assert (upstream.connections, pool.idle_connections) == (1, 1)
        await pool.aclose()
        await wait_until(lambda: upstream.open == 0, "the pool has closed its connections")


async def test_64_callers_each_get_their_own_answer_whole() -> None:
    """Bodies never mix and none is cut, whatever their sizes and framings: the answer is the hash of the question."""

    async def answer(line: Line, request: Received) -> None:
        size = int(request.body.split(b" ")[1])
        data = hashlib.shake_256(request.body).digest(size)
        if size % 2:
            await line.send(head(content_length=size) + data)
        else:
            pieces = [data[i : i + 7_001] for i in range(0, size, 7_001)]
            await line.send(head(transfer_encoding="chunked") + b"".join(map(chunk, pieces)) + b"0\r\n\r\n")

    async def caller(number: int) -> None:
        for turn in range(25):
            body = b"%d %d" % (number, (number * 2_501 + turn * 977) % 150_000 + 1)
            assert await fetch(pool, body) == hashlib.shake_256(body).digest(int(body.split(b" ")[1]))

    async with Upstream() as upstream:
        upstream.default = answer
        pool = pool_for(upstream, max_connections=48)
        await asyncio.gather(*map(caller, range(64)))
        assert (upstream.connections, pool.open_connections, pool.idle_connections) == (48, 48, 48)
        assert pool.waiting_calls == 0
        await pool.aclose()


async def test_pieces_are_handed_out_as_they_come() -> None:
    gate = asyncio.Event()
    async with Upstream() as upstream:
        opening = head(transfer_encoding="chunked") + chunk(b"one")
        upstream.plan(then(raw(opening), wait_for(gate), raw(chunk(b"two") + b"0\r\n\r\n")))
        pool = pool_for(upstream)
        response = await post(pool)
        assert await response.receive() == b"one"
        gate.set()
        assert await response.receive() == b"two"
        assert await response.receive() == b""
        assert pool.idle_connections == 1
        await pool.aclose()


async def test_a_flow_hands_pieces_to_its_consumer_until_it_has_enough() -> None:
    """What the consumer did not get, `receive` has: nothing is lost and nothing comes twice."""
    gates = [asyncio.Event(), asyncio.Event()]
    got: list[bytes] = []

    def consume(data: bytes) -> bool:
        got.append(data)
        return len(got) < 2

    async with Upstream() as upstream:
        begun = raw(head(transfer_encoding="chunked") + chunk(b"one"))
        rest = raw(chunk(b"two"))
        upstream.plan(then(begun, wait_for(gates[0]), rest, wait_for(gates[1]), raw(chunk(b"three") + b"0\r\n\r\n")))
        pool = pool_for(upstream)
        response = await post(pool)
        assert await response.receive() == b"one"
        assert response.idle
        flowing = asyncio.create_task(response.flow(consume))
        gates[0].set()
        await wait_until(lambda: got == [b"two"], "the consumer has the piece")
        assert not flowing.done()
        gates[1].set()
        await flowing
        assert b"".join(got) + await response.receive() == b"twothree"
        assert await response.receive() == b""
        await pool.aclose()


async def test_a_flow_under_pressure_passes_on_everything_in_order() -> None:
    """While the loop is short of time pieces wait for each other; a cancelled flow leaves nothing behind."""
    gathering = gathering_of(asyncio.get_running_loop())
    gathering.most_s = gathering.window_s = 0.01
    got = bytearray()

    def consume(data: bytes) -> bool:
        got.extend(data)
        return True

    words = [b"%03d " % number for number in range(200)]
    body = raw(head(transfer_encoding="chunked") + chunk(b"begin")), *(raw(chunk(word)) for word in words)
    try:
        async with Upstream() as upstream:
            upstream.plan(then(*body, raw(b"0\r\n\r\n")))
            pool = pool_for(upstream)
            response = await post(pool)
            first = await response.receive()
            if response.idle:
                await response.flow(consume)
            while rest := await response.receive():
                got.extend(rest)
            assert first + bytes(got) == b"begin" + b"".join(words)
            await wait_until(lambda: not response.held, "nothing is held back")
            await pool.aclose()
    finally:
        gathering.most_s = gathering.window_s = 0.0


async def test_interim_answers_are_passed_over() -> None:
    async with Upstream() as upstream:
        upstream.plan(raw(b"HTTP/1.1 100 Continue\r\n\r\n", head(103, link="x") + head(200, content_length=2) + b"hi"))
        pool = pool_for(upstream)
        response = await post(pool)
        assert (response.status, response.header(b"link"), await response.read()) == (200, None, b"hi")
        await pool.aclose()


@pytest.mark.parametrize("code", [204, 304])
async def test_answers_without_a_body_end_with_their_head(code: int) -> None:
    async with Upstream() as upstream:
        upstream.plan(raw(head(code, etag="x")))
        pool = pool_for(upstream)
        assert await fetch(pool) == b""
        assert await fetch(pool) != b""
        assert upstream.connections == 1
        await pool.aclose()


async def test_an_answer_to_head_has_no_body_whatever_it_declares() -> None:
    async with Upstream() as upstream:
        upstream.plan(raw(head(content_length=500)))
        pool = pool_for(upstream)
        response = await pool.request(b"HEAD", b"/x", timeouts=PATIENT)
        assert (response.status, await response.read()) == (200, b"")
        await pool.aclose()


async def test_an_answer_without_a_length_ends_with_its_connection() -> None:
    async with Upstream() as upstream:
        upstream.plan(raw(head() + b"until ", b"the end", close=True))
        pool = pool_for(upstream)
        assert await fetch(pool) == b"until the end"
        await pool.aclose()


@pytest.mark.parametrize("reset", [False, True])
async def test_a_stale_connection_is_replaced_once_and_unnoticed(reset: bool) -> None:
    async with Upstream() as upstream:
        pool = pool_for(upstream, max_connections=1)
        await fetch(pool)
        upstream.plan(drop(reset=reset))
        assert await fetch(pool, b"again") != b""
        assert [request.body for request in upstream.requests] == [b"{}", b"again", b"again"]
        assert (upstream.connections, pool.open_connections) == (2, 1)
        await pool.aclose()


async def test_a_stale_connection_is_replaced_by_a_fresh_one_and_not_by_another_stale_one() -> None:
    async with Upstream() as upstream:
        pool = pool_for(upstream, max_connections=2)
        await asyncio.gather(fetch(pool), fetch(pool))
        assert pool.idle_connections == 2
        upstream.plan(drop())
        await fetch(pool)
        assert upstream.connections == 3
        assert upstream.requests[-1].number == 0
        await pool.aclose()


async def test_a_fresh_connection_that_breaks_is_not_tried_again() -> None:
    async with Upstream() as upstream:
        upstream.plan(drop())
        pool = pool_for(upstream)
        with pytest.raises(UpstreamFailed, match="without an answer"):
            await fetch(pool)
        assert len(upstream.requests) == 1
        await pool.aclose()


async def test_a_kept_connection_that_breaks_inside_its_answer_is_not_tried_again() -> None:
    """The upstream has begun to work on the call; a second one could be billed twice."""
    async with Upstream() as upstream:
        pool = pool_for(upstream)
        await fetch(pool)
        upstream.plan(raw(b"HTTP/1.1 200", close=True))
        with pytest.raises(UpstreamFailed, match="before its end"):
            await fetch(pool)
        assert len(upstream.requests) == 2
        await pool.aclose()


async def test_a_connection_closed_while_idle_leaves_the_pool() -> None:
    async with Upstream() as upstream:
        upstream.plan(then(json_answer({}), drop()))
        pool = pool_for(upstream)
        await fetch(pool)
        await wait_until(lambda: pool.open_connections == 0, "the closed connection has left the pool")
        await pool.aclose()


async def test_idle_connections_expire() -> None:
    async with Upstream() as upstream:
        pool = HttpPool("up", upstream.url, max_connections=2, max_body_bytes=1_000, idle_s=0.05)
        await fetch(pool)
        await wait_until(lambda: pool.open_connections == 0, "the idle connection has expired")
        await wait_until(lambda: upstream.open == 0, "the server has seen it")
        await pool.aclose()


async def test_calls_beyond_the_connections_wait_in_order() -> None:
    gate = asyncio.Event()
    order: list[int] = []

    async def call(number: int) -> None:
        await fetch(pool, b"%d" % number)
        order.append(number)

    async with Upstream() as upstream:
        upstream.plan(then(wait_for(gate), json_answer({})))
        pool = pool_for(upstream, max_connections=1)
        calls = []
        for number in range(5):
            calls.append(asyncio.create_task(call(number)))
            await wait_until(lambda: pool.waiting_calls == len(calls) - 1, "the call stands in line")
        gate.set()
        await asyncio.gather(*calls)
        assert order == [0, 1, 2, 3, 4]
        assert upstream.connections == 1
        await pool.aclose()


async def test_a_line_that_is_too_long_or_too_slow_is_refused_with_overloaded() -> None:
    async with Upstream() as upstream:
        upstream.default = hang()
        pool = pool_for(upstream, max_connections=1)
        calls = [asyncio.create_task(fetch(pool)) for _ in range(5)]
        await wait_until(lambda: pool.waiting_calls == 4, "the line is full")
        with pytest.raises(Overloaded, match="'up' has too many calls waiting") as refused:
            await fetch(pool)
        assert refused.value.retry_after_s == 1.0
        calls[4].cancel()
        await wait_until(lambda: pool.waiting_calls == 3, "a call that gave up has left the line")
        hasty = Timeouts(connect_s=0.01, first_byte_s=30, between_bytes_s=30, total_s=60)
        with pytest.raises(Overloaded, match="busy"):
            await post(pool, timeouts=hasty)
        await pool.aclose()
        results = await asyncio.gather(*calls, return_exceptions=True)
        assert [type(result) for result in results[:4]] == [UpstreamFailed, Overloaded, Overloaded, Overloaded]


async def test_who_would_wait_in_vain_is_refused_at_once_and_told_when_to_come_back() -> None:
    """With turns a tenth of a second apart and two in line, a third waits 0.3 s."""
    gates = [asyncio.Event() for _ in range(5)]
    async with Upstream() as upstream:
        for gate in gates:
            upstream.plan(then(wait_for(gate), json_answer({})))
        pool = pool_for(upstream, max_connections=1)
        calls = [asyncio.create_task(fetch(pool)) for _ in gates]
        await wait_until(lambda: pool.waiting_calls == 4, "four calls stand in line")
        for gate, left in zip(gates, (3, 2), strict=False):
            gate.set()
            await wait_until(lambda left=left: pool.waiting_calls == left, "a turn was given")  # type: ignore[misc]
        assert pool.wait_s > 0
        pool._turn_s = 0.1
        hasty = Timeouts(connect_s=0.25, first_byte_s=30, between_bytes_s=30, total_s=60)
        with pytest.raises(Overloaded, match="in time") as refused:
            await post(pool, timeouts=hasty)
        assert refused.value.retry_after_s == 1.0
        assert pool.waiting_calls == 2
        for gate in gates:
            gate.set()
        await asyncio.gather(*calls)
        assert pool.wait_s == 0.0
        await pool.aclose()


async def test_a_closed_pool_refuses_calls() -> None:
    async with Upstream() as upstream:
        pool = pool_for(upstream)
        await pool.aclose()
        await pool.aclose()
        with pytest.raises(Overloaded, match="shut down"):
            await fetch(pool)


async def test_1000_hang_ups_leak_neither_connection_nor_task() -> None:
    """Half give up before the head, half inside the body; the upstream sees each, and nothing stays behind."""
    opening = head(transfer_encoding="chunked") + chunk(b"first")

    async def inside() -> None:
        response = await post(pool)
        await response.receive()
        response.close()

    async def before(requests: int) -> None:
        call = asyncio.create_task(post(pool))
        await wait_until(lambda: len(upstream.requests) > requests, "the request has arrived")
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call

    async with Upstream() as upstream:
        upstream.default = then(raw(opening), hang())
        pool = pool_for(upstream, max_connections=20)
        tasks = len(asyncio.all_tasks())
        for _ in range(25):
            await asyncio.gather(*(inside() for _ in range(20)))
        upstream.default = hang()
        for _ in range(25):
            await asyncio.gather(*(before(len(upstream.requests) + place) for place in range(20)))
        await wait_until(lambda: upstream.open == 0, "the upstream has seen every hang-up")
        assert all(line.gone.is_set() for line in upstream.lines)
        assert (len(upstream.lines), pool.open_connections, pool.waiting_calls) == (1_000, 0, 0)
        await wait_until(lambda: len(asyncio.all_tasks()) == tasks, "no task is left")
        upstream.default = json_answer({})
        assert await fetch(pool) == b"{}"
        await pool.aclose()


async def test_a_released_answer_that_is_all_but_over_keeps_its_connection() -> None:
    gate = asyncio.Event()
    async with Upstream() as upstream:
        opening = head(transfer_encoding="chunked") + chunk(b"all there is")
        upstream.plan(then(raw(opening), wait_for(gate), raw(b"0\r\n\r\n")))
        pool = pool_for(upstream)
        response = await post(pool)
        assert await response.receive() == b"all there is"
        response.release()
        response.close()
        gate.set()
        await wait_until(lambda: pool.idle_connections == 1, "the connection is kept")
        await pool.aclose()


async def test_a_slow_reader_holds_the_upstream_back() -> None:
    """What is buffered for a reader that lags stays bounded, and all of it arrives in the end."""
    size = 20_000_000
    sent = 0

    async def flood(line: Line, request: Received) -> None:
        nonlocal sent
        await line.send(head(content_length=size))
        while sent < size:
            await line.send(b"x" * 100_000)
            sent += 100_000

    seen: list[int] = []

    def standstill() -> bool:
        seen.append(sent)
        return len(seen) > 10 and seen[-10] == sent

    async with Upstream() as upstream:
        upstream.default = flood
        pool = pool_for(upstream, max_body_bytes=size)
        response = await post(pool)
        received = len(await response.receive())
        await wait_until(standstill, "the sender stands still")
        assert sent < size / 2, "the sender is not held back"
        assert response.buffered_bytes < 1_000_000
        while data := await response.receive():
            assert len(data) < 1_000_000
            received += len(data)
        assert received == size
        await pool.aclose()


@pytest.mark.parametrize(
    "pair", [("a", "b\r\nx: y"), ("a\nb", "c"), ("", "x"), ("a b", "c"), ("a:", "c"), ("a", "é"), ("a", "\x00")]
)
def test_a_header_that_would_break_out_of_its_line_is_refused(pair: tuple[str, str]) -> None:
    with pytest.raises(ValueError, match="can't be sent"):
        header_block([pair])


@pytest.mark.parametrize("url", ["ftp://x", "http://", "x", "http://u:p@x/", "http://x/?q=1"])
def test_an_address_that_is_no_plain_http_address_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match="is no http"):
        HttpPool("up", url, max_connections=1, max_body_bytes=1)


async def test_a_closed_connection_is_freed_without_the_garbage_collector() -> None:
    from modelport.backends.transport.connection import Connection

    async with Upstream() as upstream:
        pool = pool_for(upstream)
        await fetch(pool)
        gc.collect()
        gc.disable()
        try:
            await pool.aclose()
            await wait_until(lambda: upstream.open == 0, "the connection is closed")
            alive = [thing for thing in gc.get_objects() if isinstance(thing, Connection)]
            assert alive == []
        finally:
            gc.enable()
