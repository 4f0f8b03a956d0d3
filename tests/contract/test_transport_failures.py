"""The pool against upstreams that fail: each misbehaviour ends in its own error, soon, and never in a wrong answer."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import AsyncIterator

import pytest
import trustme

from modelport.backends.transport import HttpPool, Response, Timeouts
from modelport.errors import CallTimeout, UpstreamFailed
from tests.upstream import Line, Received, Step, Upstream, chunk, drip, drop, hang, head, json_answer, raw, then
from tests.waiting import wait_until

PATIENT = Timeouts(connect_s=10, first_byte_s=30, between_bytes_s=30, total_s=60)
SOON_S = 0.05


@pytest.fixture
async def upstream() -> AsyncIterator[Upstream]:
    async with Upstream() as server:
        yield server


@pytest.fixture
async def pool(upstream: Upstream) -> AsyncIterator[HttpPool]:
    pool = HttpPool("up", upstream.url, max_connections=4, max_body_bytes=100_000)
    yield pool
    await pool.aclose()


async def post(pool: HttpPool, timeouts: Timeouts = PATIENT) -> Response:
    return await pool.request(b"POST", b"/x", body=b"{}", timeouts=timeouts)


async def fetch(pool: HttpPool, timeouts: Timeouts = PATIENT) -> bytes:
    response = await post(pool, timeouts)
    try:
        return await response.read()
    finally:
        response.close()


def _smuggled(*lengths: str) -> bytes:
    return ("HTTP/1.1 200 OK\r\n" + "".join(f"{line}\r\n" for line in lengths) + "\r\n5\r\nhello\r\n0\r\n\r\n").encode()


GARBAGE = [
    b"SSH-2.0-OpenSSH_9.6\r\n",
    b"\x16\x03\x01\x02\x00\x01\x00\x01",
    b"HTTP/1.1 2000 OK\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nBad Header\r\n\r\n",
    b"HTTP/1.1 200 OK\r\ncontent-length: -5\r\n\r\n",
    b"HTTP/1.1 200 OK\r\ncontent-length: 99999999999999999999999\r\n\r\n",
    b"HTTP/1.1 101 Switching\r\nconnection: upgrade\r\nupgrade: h2c\r\n\r\n\x00\x00",
    _smuggled("Content-Length: 5", "Transfer-Encoding: chunked"),
    _smuggled("Transfer-Encoding: chunked", "Content-Length: 5"),
    _smuggled("Content-Length: 5", "Content-Length: 6"),
]


@pytest.mark.parametrize("data", GARBAGE, ids=range(len(GARBAGE)))
async def test_what_is_not_http_or_could_be_read_in_two_ways_is_refused(
    upstream: Upstream, pool: HttpPool, data: bytes
) -> None:
    upstream.plan(raw(data))
    with pytest.raises(UpstreamFailed, match=r"'up' sent something that is not HTTP/1.1") as failed:
        await fetch(pool)
    assert failed.value.internal
    await wait_until(lambda: upstream.open == 0, "the connection is not kept")


CUT = {
    "fewer bytes than declared": head(content_length=10) + b"12345",
    "no last chunk": head(transfer_encoding="chunked") + chunk(b"12345"),
    "inside a chunk": head(transfer_encoding="chunked") + b"5\r\n12",
    "inside the head": b"HTTP/1.1 200 OK\r\ncontent-le",
    "after an interim answer": b"HTTP/1.1 100 Continue\r\n\r\n",
    "a coding that we did not ask for": head(transfer_encoding="gzip") + b"\x1f\x8b",
}


@pytest.mark.parametrize("data", CUT.values(), ids=CUT.keys())
async def test_an_answer_that_ends_too_early_is_never_taken_for_whole(
    upstream: Upstream, pool: HttpPool, data: bytes
) -> None:
    upstream.plan(raw(data, close=True))
    with pytest.raises(UpstreamFailed, match="before its end"):
        await fetch(pool)


async def test_pieces_before_a_cut_are_handed_out_and_then_the_failure(upstream: Upstream, pool: HttpPool) -> None:
    upstream.plan(raw(head(transfer_encoding="chunked") + chunk(b"12345"), close=True))
    response = await post(pool)
    assert await response.receive() == b"12345"
    with pytest.raises(UpstreamFailed, match="before its end"):
        await response.receive()


async def test_bytes_after_an_answer_never_become_the_next_answer(upstream: Upstream, pool: HttpPool) -> None:
    """A second answer that nobody asked for would be given to the wrong customer."""
    whole = head(content_length=2) + b"ok"
    upstream.plan(raw(whole + head(content_length=4) + b"evil"))
    assert await fetch(pool) == b"ok"
    assert pool.idle_connections == 0
    upstream.plan(then(raw(whole), raw(head(content_length=4) + b"evil")))
    assert await fetch(pool) == b"ok"
    await wait_until(lambda: pool.open_connections == 0, "the connection with stray bytes is closed")
    assert await fetch(pool) != b"evil"


async def _endless_header(line: Line, request: Received) -> None:
    await line.send(b"HTTP/1.1 200 OK\r\nx: ")
    while True:
        await line.send(b"a" * 1_000)


async def _endless_interims(line: Line, request: Received) -> None:
    while True:
        await line.send(b"HTTP/1.1 100 Continue\r\n\r\n" * 50)


async def _endless_trailers(line: Line, request: Received) -> None:
    await line.send(head(transfer_encoding="chunked") + chunk(b"x") + b"0\r\nx: ")
    while True:
        await line.send(b"a" * 1_000)


@pytest.mark.parametrize("step", [_endless_header, _endless_interims, _endless_trailers])
async def test_headers_without_end_are_cut_off(upstream: Upstream, pool: HttpPool, step: Step) -> None:
    upstream.plan(step)
    with pytest.raises(UpstreamFailed, match="headers larger than"):
        await fetch(pool)


@pytest.mark.parametrize(
    "data",
    [
        head(content_length=100_001) + b"x" * 100_001,
        head(transfer_encoding="chunked") + chunk(b"x" * 60_000) * 2 + b"0\r\n\r\n",
        head() + b"x" * 100_001,
    ],
    ids=["declared", "chunked", "until closed"],
)
async def test_an_answer_beyond_the_bound_is_cut_off(upstream: Upstream, pool: HttpPool, data: bytes) -> None:
    upstream.plan(raw(data))
    with pytest.raises(UpstreamFailed, match="larger than 100000 bytes"):
        await fetch(pool)
    await wait_until(lambda: upstream.open == 0, "the upstream is hung up on")


async def test_a_reader_can_set_a_lower_bound(upstream: Upstream, pool: HttpPool) -> None:
    upstream.plan(raw(head(content_length=2_000) + b"x" * 1_500))
    response = await post(pool)
    with pytest.raises(UpstreamFailed, match="larger than 1000 bytes"):
        await response.read(limit_bytes=1_000)


TIMEOUTS = {
    "sent nothing": (hang(), Timeouts(10, SOON_S, 30, 60)),
    "sent nothing ": (raw(b"HTTP/1.1 200 OK\r\n"), Timeouts(10, SOON_S, 30, 60)),
    "fell silent": (raw(head(content_length=9) + b"x"), Timeouts(10, 30, SOON_S, 60)),
    "did not finish": (hang(), Timeouts(10, 30, 30, SOON_S)),
}


@pytest.mark.parametrize("what", TIMEOUTS)
async def test_silence_ends_in_a_timeout(upstream: Upstream, pool: HttpPool, what: str) -> None:
    step, timeouts = TIMEOUTS[what]
    upstream.plan(then(step, hang()))
    with pytest.raises(CallTimeout, match=f"'up' {what.strip()}"):
        await fetch(pool, timeouts)
    await wait_until(lambda: upstream.open == 0, "the upstream is hung up on")


async def test_the_total_bounds_an_answer_that_drips_for_ever(upstream: Upstream, pool: HttpPool) -> None:
    upstream.plan(then(raw(head(transfer_encoding="chunked")), drip(chunk(b"."), gap_s=0.005)))
    with pytest.raises(CallTimeout, match="did not finish"):
        await fetch(pool, Timeouts(10, 30, 1, 0.1))


async def test_time_that_the_reader_takes_is_not_blamed_on_the_upstream(upstream: Upstream, pool: HttpPool) -> None:
    """The upstream is not silent while it is held back, and gets its whole patience again afterwards."""
    large = HttpPool("up", upstream.url, max_connections=1, max_body_bytes=50_000_000)
    size = 20_000_000
    upstream.plan(raw(head(content_length=size), b"x" * size))
    response = await post(large, Timeouts(10, 30, SOON_S, 60))
    received = len(await response.receive())
    late = asyncio.get_running_loop().time() + 4 * SOON_S
    await wait_until(lambda: asyncio.get_running_loop().time() > late, "the reader has dawdled")
    while data := await response.receive():
        received += len(data)
    assert received == size
    await large.aclose()


async def test_a_timeout_is_not_tried_again_on_another_connection(upstream: Upstream, pool: HttpPool) -> None:
    await fetch(pool)
    upstream.plan(hang())
    with pytest.raises(CallTimeout):
        await fetch(pool, Timeouts(10, SOON_S, 30, 60))
    assert len(upstream.requests) == 2


async def test_a_timeout_of_one_call_is_none_of_the_next_on_the_connection(upstream: Upstream, pool: HttpPool) -> None:
    """The connection's timer is set for the earlier call and must not ring for the later one."""
    gate = asyncio.Event()
    await fetch(pool, Timeouts(10, SOON_S, SOON_S, SOON_S))

    async def answer(line: Line, request: Received) -> None:
        await gate.wait()
        await json_answer({})(line, request)

    upstream.plan(answer)
    call = asyncio.create_task(fetch(pool))
    late = asyncio.get_running_loop().time() + 3 * SOON_S
    await wait_until(lambda: asyncio.get_running_loop().time() > late, "the earlier call's time is over")
    gate.set()
    assert await call == b"{}"
    assert upstream.connections == 1


async def test_a_refused_connection_names_the_upstream_and_not_the_address() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        pool = HttpPool("up", f"http://127.0.0.1:{port}", max_connections=1, max_body_bytes=1_000)
        for _ in range(3):
            with pytest.raises(UpstreamFailed) as failed:
                await fetch(pool)
            assert failed.value.message == "The model's server 'up' can't be reached"
            assert str(port) in (failed.value.internal or "")
        await pool.aclose()


async def test_a_name_without_an_address_is_a_failed_upstream() -> None:
    pool = HttpPool("up", "http://nowhere.invalid/v1", max_connections=1, max_body_bytes=1_000)
    with pytest.raises(UpstreamFailed, match="can't be reached"):
        await fetch(pool)
    await pool.aclose()


async def test_a_handshake_that_never_ends_is_a_timeout(upstream: Upstream) -> None:
    """A plain server that waits for a request line while we wait for its certificate."""
    pool = HttpPool("up", upstream.url.replace("http:", "https:"), max_connections=1, max_body_bytes=1_000)
    with pytest.raises(CallTimeout, match="did not take the connection in time"):
        await fetch(pool, Timeouts(SOON_S, 30, 30, 60))
    await wait_until(lambda: upstream.open == 0, "the connection is given up")
    await pool.aclose()


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


def _server_tls(authority: trustme.CA, name: str) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(name).configure_cert(context)
    return context


async def test_a_trusted_certificate_lets_calls_through(authority: trustme.CA) -> None:
    trust = ssl.create_default_context()
    authority.configure_trust(trust)
    async with Upstream(tls=_server_tls(authority, "localhost")) as upstream:
        pool = HttpPool("up", upstream.url, max_connections=1, max_body_bytes=1_000, tls=trust)
        for _ in range(3):
            assert await fetch(pool)
        assert upstream.connections == 1
        upstream.plan(drop())
        assert await fetch(pool)
        await pool.aclose()


@pytest.mark.parametrize("name", ["localhost", "example.com"], ids=["unknown authority", "other name"])
async def test_a_certificate_that_can_not_be_trusted_ends_the_call(authority: trustme.CA, name: str) -> None:
    trust = ssl.create_default_context()
    if name != "localhost":
        authority.configure_trust(trust)
    async with Upstream(tls=_server_tls(authority, name)) as upstream:
        pool = HttpPool("up", upstream.url, max_connections=1, max_body_bytes=1_000, tls=trust)
        with pytest.raises(UpstreamFailed, match="'up' failed the TLS handshake") as failed:
            await fetch(pool)
        assert "certificate" in (failed.value.internal or "").lower()
        assert upstream.requests == []
        await pool.aclose()
