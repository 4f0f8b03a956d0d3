"""Connections that are hostile or clumsy: nobody gets another's answer, nothing waits or grows without bound."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from modelport.api.connection import MAX_QUEUED
from tests.inside import in_flight, open_files, resident_bytes
from tests.rawhttp import RawClient, chat, request
from tests.serving import Server
from tests.waiting import wait_until

CONFIG = """
default_models = false
[[models]]
id = "sandbox"
backend = "sandbox"
[server]
header_timeout_s = 1
body_timeout_s = 1
send_timeout_s = 1
max_header_bytes = 16384
max_connections = 40
"""
ALIVE = request("GET", "/livez")
BODY = json.dumps({"model": "sandbox", "messages": [{"role": "user", "content": "[[tokens:1]]"}]}).encode()
CHUNKED = b"%x\r\n%b\r\n0\r\n\r\n" % (len(BODY), BODY)
# What two servers in a row could cut into requests at different places.
TWO_MEANINGS = [
    ("content-length: 5", "transfer-encoding: chunked"),
    (f"content-length: {len(BODY)}", "content-length: 5"),
    (f"content-length: {len(BODY)}", f"content-length: {len(BODY)}"),
    ("content-length: -1",),
    ("content-length: +5",),
    ("content-length: 0x5",),
    ("content-length: 5, 5",),
    ("content-length: 5 5",),
    ("content-length: 99999999999999999999",),
    ("content-length: ",),
    ("transfer-encoding: xchunked",),
    ("transfer-encoding: identity",),
    ("transfer-encoding: chunked, identity",),
    ('transfer-encoding: "chunked"',),
    ("transfer-encoding : chunked",),
    ("transfer-encoding: chunked", "transfer-encoding: identity"),
    ("transfer-encoding: identity", "transfer-encoding: chunked"),
    ("transfer-encoding:\r\n chunked",),
    ("x: y\rtransfer-encoding: chunked",),
    ("x: y\ntransfer-encoding: chunked",),
    (" transfer-encoding: chunked",),
]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with Server(tmp_path_factory.mktemp("attacks"), config=CONFIG) as server:
        yield server


@pytest.fixture
def key(server: Server) -> str:
    return server.credentials["api_key"]


@pytest.fixture
def client(server: Server) -> Iterator[RawClient]:
    with RawClient(server.port) as client:
        yield client


def post(key: str, *headers: str, body: bytes = b"") -> bytes:
    lines = (f"authorization: Bearer {key}", "content-type: application/json", *headers)
    return request("POST", "/v1/chat/completions", *lines, body=body)


@pytest.mark.parametrize("framing", TWO_MEANINGS, ids=repr)
def test_a_request_that_can_be_cut_in_two_ways_is_refused_and_its_connection_ended(
    client: RawClient, key: str, framing: tuple[str, ...]
) -> None:
    client.send(post(key, *framing, body=CHUNKED) + ALIVE)
    answer = client.answer("POST")
    assert (answer.status, answer.code, answer.headers["connection"]) == (400, "invalid_request_error", "close")
    assert answer.headers["x-request-id"] == answer.json()["request_id"]
    assert client.is_closed()


@pytest.mark.parametrize(
    "head",
    [
        b"GET /livez HTTP/1.1\nhost: x\n\n",
        b"GET /livez HTTP/1.1\r\nhost: x\r\n bent: y\r\n\r\n",
        b"GET /livez HTTP/1.1\r\nho\0st: x\r\n\r\n",
        b"GET /liv\xffez HTTP/1.1\r\nhost: x\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"CONNECT example.com:443 HTTP/1.1\r\nhost: x\r\n\r\n",
        b"BREW /livez HTTP/1.1\r\nhost: x\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" * 20,
    ],
)
def test_what_is_no_request_gets_the_error_body_and_is_cut_off(client: RawClient, head: bytes) -> None:
    client.send(head + ALIVE)
    answer = client.answer()
    assert (answer.status, answer.code, answer.headers["connection"]) == (400, "invalid_request_error", "close")
    assert client.is_closed()


@pytest.mark.parametrize(
    "headers",
    [
        b"",
        b"host: a\r\nhost: b\r\n",
        b"host: a\r\nauthorization: Bearer x\r\nauthorization: Bearer y\r\n",
        b"host: a\r\nx-api-key: x\r\nX-API-Key: y\r\n",
        b"host: a\r\ntransfer-encoding: gzip, chunked\r\n",
    ],
)
@pytest.mark.parametrize("path", [b"/v1/chat/completions", b"/v1/models"])
def test_headers_that_two_readers_could_take_differently_are_refused(
    client: RawClient, path: bytes, headers: bytes
) -> None:
    method = b"POST " if b"chat" in path else b"GET "
    body = b"0\r\n\r\n" if b"chunked" in headers else b""
    client.send(method + path + b" HTTP/1.1\r\n" + headers + b"\r\n" + body)
    assert client.answer().status == 400
    assert client.is_closed()


def test_requests_sent_ahead_get_their_own_answers_in_order(client: RawClient, key: str) -> None:
    slow = [chat(key, f"[[latency:{9 - n}0ms]] [[tokens:{n + 1}]]") for n in range(3)]
    client.send(slow[0] + ALIVE + slow[1] + request("GET", "/nowhere") + slow[2] + request("GET", "/v1/models"))
    answers = [client.answer() for _ in range(6)]
    assert [answer.status for answer in answers] == [200, 200, 200, 404, 200, 401]
    assert [answers[n].json()["usage"]["completion_tokens"] for n in (0, 2, 4)] == [1, 2, 3]
    assert answers[3].json()["instance"] == "/nowhere"


def test_an_answer_that_is_owed_comes_before_the_refusal_of_what_follows(client: RawClient, key: str) -> None:
    client.send(chat(key, "[[latency:100ms]] [[tokens:1]]") + post(key, "transfer-encoding: chunked") + b"zz\r\n")
    assert client.answer().json()["usage"]["completion_tokens"] == 1
    assert client.answer().status == 400
    assert client.is_closed()


async def test_any_number_of_requests_sent_ahead_is_bounded_and_hides_no_hang_up(server: Server, key: str) -> None:
    with RawClient(server.port) as client:
        before = resident_bytes(server)
        client.send(chat(key, "[[hang]]")).send_until_cut(ALIVE * 1000, 1000)
        assert resident_bytes(server) - before < 20_000_000
    with RawClient(server.port) as client:
        client.send(chat(key, "[[hang]]") + chat(key, "[[hang]]", user="x" * 3_000_000))
    await wait_until(lambda: in_flight(server) == 0, "both calls were stopped")
    with RawClient(server.port) as client:
        client.send(chat(key, "[[latency:100ms]] [[tokens:1]]") + ALIVE * 1000)
        answers = client.rest().count(b"HTTP/1.1 200")
    assert answers == 1 + MAX_QUEUED


def test_a_large_request_sent_ahead_is_refused_in_its_turn(client: RawClient, key: str) -> None:
    client.send(chat(key, "[[latency:300ms]] [[tokens:1]]") + chat(key, "x", user="x" * 3_000_000))
    first, second = client.answer(), client.answer()
    assert (first.status, second.status, second.code) == (200, 503, "overloaded")


@pytest.mark.parametrize("version", ["1.0", "1.1"])
def test_a_stream_is_framed_as_the_clients_version_can_read(client: RawClient, key: str, version: str) -> None:
    sent = chat(key, "[[tokens:2]]", stream=True).replace(b"HTTP/1.1", f"HTTP/{version}".encode(), 1)
    answer = client.send(sent).answer()
    assert ("transfer-encoding" in answer.headers) == (version == "1.1")
    assert answer.body.startswith(b"data: {")
    assert answer.body.endswith(b"data: [DONE]\n\n")


@pytest.mark.parametrize("path", ["/livez", "/openapi.json", "/nowhere", "/v1/models", "/v1/chat/completions"])
def test_head_is_answered_without_a_body_and_the_connection_goes_on(client: RawClient, path: str) -> None:
    expected = {"/livez": 200, "/openapi.json": 200, "/nowhere": 404, "/v1/models": 401, "/v1/chat/completions": 405}
    answer = client.send(request("HEAD", path)).answer("HEAD")
    assert answer.status == expected[path]
    assert int(answer.headers["content-length"]) > 0
    assert client.send(ALIVE).answer().json() == {"status": "ok"}


def test_an_absolute_target_and_an_upgrade_are_taken_for_the_request_they_are(client: RawClient, key: str) -> None:
    assert client.send(request("GET", "http://elsewhere.example/livez")).answer().status == 200
    offer = ("connection: upgrade, http2-settings", "upgrade: h2c", "http2-settings: AAMAAABk")
    client.send(post(key, *offer, body=BODY) + post(key, *offer, "transfer-encoding: chunked", body=CHUNKED) + ALIVE)
    assert [client.answer().status for _ in range(3)] == [200, 200, 200]


def test_a_trailer_is_no_header(client: RawClient, key: str) -> None:
    head = request("POST", "/v1/chat/completions", "content-type: application/json", "transfer-encoding: chunked")
    client.send(head + CHUNKED[:-2] + f"authorization: Bearer {key}\r\n\r\n".encode())
    assert client.answer().status == 401


def test_a_client_that_waits_for_100_gets_it_or_the_refusal_but_never_both(client: RawClient, key: str) -> None:
    expect = ("expect: 100-continue", f"content-length: {len(BODY)}")
    client.send(post(key, *expect))
    assert (client.line(), client.line()) == (b"HTTP/1.1 100 Continue\r\n", b"\r\n")
    assert client.send(BODY).answer().status == 200
    refused = client.send(post("wrong", *expect)).answer()
    assert (refused.status, refused.headers["connection"]) == (401, "close")
    assert client.is_closed()


@pytest.mark.parametrize(
    ("start", "more"),
    [
        (b"GET /livez HTTP/1.1\r\nhost: x\r\n", b"x: " + b"y" * 1000 + b"\r\n"),
        (b"GET /livez HTTP/1.1\r\nhost: x\r\nx: ", b"y" * 1000),
        (b"GET /", b"y" * 1000),
        (b"GET /livez HTTP/1.1\r\n" + b"x: y\r\n" * 150 + b"\r\n", b""),
    ],
)
def test_a_head_without_end_is_cut_off_early(client: RawClient, start: bytes, more: bytes) -> None:
    client.send(start).send_until_cut(more, 1000 if more else 0)
    answer = client.answer()
    assert (answer.status, answer.code, answer.headers["connection"]) == (431, "request_too_large", "close")


@pytest.mark.parametrize("start", [b"GET /livez HTTP/1.1\r\nhost:", b"G", ALIVE + b"GET /"])
def test_headers_that_never_end_are_given_up_on(client: RawClient, start: bytes) -> None:
    client.send(start)
    answers = [client.answer() for _ in range(2 if start.startswith(ALIVE) else 1)]
    assert (answers[-1].status, answers[-1].headers["connection"]) == (408, "close")
    assert client.is_closed()


def test_a_connection_on_which_nothing_comes_is_closed(client: RawClient) -> None:
    assert client.is_closed()


async def test_a_client_that_reads_nothing_is_cut_off(server: Server) -> None:
    before = open_files(server)
    with RawClient(server.port) as client:
        client.send(request("GET", "/openapi.json") * 100)
        await wait_until(lambda: open_files(server) > before, "the connection is open")
        await wait_until(lambda: open_files(server) <= before, "the connection is gone")


async def test_connections_beyond_the_most_are_told_so_in_the_error_body(server: Server) -> None:
    held = [RawClient(server.port).send(b"GET") for _ in range(60)]
    answers = [client.answer() for client in held]
    refused = [answer for answer in answers if answer.status == 503]
    # Connections of the tests before may still be on their way out.
    assert 20 <= len(refused) < 30
    for answer in refused:
        assert answer.code == "overloaded"
        assert answer.headers["x-request-id"] == answer.json()["request_id"]
        assert (answer.headers["retry-after"], answer.headers["retry-after-ms"]) == ("1", "1000")
    for client in held:
        client.close()
    await wait_until(lambda: server.request("GET", "/livez")[0] == 200, "there is room again")
