"""What a client can do to `/v1/ws` on purpose: silence, deafness, fragments without end, a key that is revoked."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket as sockets
from collections.abc import Iterator

import pytest
from websockets.asyncio.client import connect
from websockets.frames import Frame, Opcode

from tests.rawhttp import Answer
from tests.serving import Server
from tests.waiting import wait_until

CONFIG = """
default_models = false
[server]
send_timeout_s = 1.0
socket_ping_s = 1.0
max_socket_message_bytes = 20000
[[models]]
id = "sandbox"
backend = "sandbox"
"""
HEAD = (
    "GET /v1/ws HTTP/1.1\r\nhost: x\r\nconnection: Upgrade\r\nupgrade: websocket\r\n"
    "sec-websocket-version: {version}\r\nsec-websocket-key: {key}\r\nauthorization: Bearer {secret}\r\n\r\n"
)
GOOD_KEY = "dGhlIHNhbXBsZSBub25jZQ=="


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with Server(tmp_path_factory.mktemp("ws"), config=CONFIG) as server:
        yield server


def dial(server: Server, *, key: str = GOOD_KEY, version: str = "13") -> sockets.socket:
    line = sockets.socket()
    # Small, so that what nobody reads comes to a stop.
    line.setsockopt(sockets.SOL_SOCKET, sockets.SO_RCVBUF, 4096)
    line.settimeout(20)
    line.connect(("127.0.0.1", server.port))
    line.sendall(HEAD.format(key=key, version=version, secret=server.credentials["api_key"]).encode())
    return line


def masked(opcode: Opcode, data: bytes, *, fin: bool = True) -> bytes:
    return Frame(opcode, data, fin=fin).serialize(mask=True)


def read_all(line: sockets.socket) -> bytes:
    pieces = []
    with contextlib.suppress(ConnectionResetError):
        while piece := line.recv(65536):
            pieces.append(piece)
    return b"".join(pieces)


def in_flight(server: Server) -> float:
    lines = Answer(*server.request("GET", "/metrics")).body.decode().splitlines()
    return sum(float(line.split()[-1]) for line in lines if line.startswith("modelport_calls_in_flight"))


def chat(content: str) -> bytes:
    messages = [{"role": "user", "content": content}]
    return json.dumps(
        {"type": "chat.create", "id": "a", "model": "sandbox", "messages": messages, "max_tokens": 100_000}
    ).encode()


def test_a_client_that_answers_no_ping_is_cut_off(server: Server) -> None:
    with dial(server) as line:
        answer = read_all(line)
    assert answer.startswith(b"HTTP/1.1 101 ")
    assert answer.endswith(Frame(Opcode.PING, b"").serialize(mask=False))


async def test_a_client_that_reads_nothing_is_cut_off_and_its_call_stops(server: Server) -> None:
    def ask() -> sockets.socket:
        line = dial(server)
        line.sendall(masked(Opcode.TEXT, chat("[[tokens:100000]]")))
        return line

    line = await asyncio.to_thread(ask)
    try:
        await wait_until(lambda: asyncio.to_thread(lambda: in_flight(server) > 0), "the call runs")
        await wait_until(lambda: asyncio.to_thread(lambda: in_flight(server) == 0), "the call was stopped")
        assert b'"done"' not in await asyncio.to_thread(read_all, line)
    finally:
        line.close()


def test_a_message_in_endless_empty_fragments_is_still_one_message(server: Server) -> None:
    with dial(server) as line:
        whole = chat("[[tokens:1]]")
        line.sendall(masked(Opcode.TEXT, whole[:7], fin=False))
        line.sendall(masked(Opcode.CONT, b"", fin=False) * 20_000)
        line.sendall(masked(Opcode.CONT, whole[7:]))
        heard = b""
        while b'"done"' not in heard:
            piece = line.recv(65536)
            assert piece, heard
            heard += piece


@pytest.mark.parametrize("data", [b"\xff" * 64, b"\x01\x05hello", b"\x83\xfe" + b"\0" * 300])
def test_what_is_no_frame_closes_with_1002(server: Server, data: bytes) -> None:
    with dial(server) as line:
        line.sendall(data)
        assert b"\x03\xea" in read_all(line)


def test_a_handshake_that_is_none_is_refused(server: Server) -> None:
    for version, key, status in (("12", GOOD_KEY, 426), ("13", "short", 400), ("13", "é" * 12, 400)):
        with dial(server, key=key, version=version) as line:
            assert read_all(line).startswith(b"HTTP/1.1 %d " % status)


async def test_a_key_that_is_revoked_gets_nothing_from_the_next_call_on(server: Server) -> None:
    operator = server.credentials["api_key"]
    wanted = {"name": "hers", "scopes": ["inference"]}
    made = Answer(*server.request("POST", "/v1/api_keys", body=wanted, key=operator)).json()
    address = f"ws://127.0.0.1:{server.port}/v1/ws"
    async with connect(address, additional_headers={"x-api-key": made["key"]}) as socket:
        await socket.send(chat("[[tokens:1]]"))
        while (message := json.loads(await socket.recv()))["type"] != "done":
            assert message["type"] == "delta"
        path = f"/v1/api_keys/{made['id']}"
        await asyncio.to_thread(server.request, "DELETE", path, key=operator)
        await socket.send(chat("[[tokens:1]]"))
        refused = json.loads(await socket.recv())
        assert (refused["id"], refused["error"]["code"]) == ("a", "invalid_api_key")
