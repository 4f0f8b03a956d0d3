"""`/v1/ws` with PyPI's `websockets` as the client: calls side by side, their limits, and how they end."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from tests.rawhttp import Answer
from tests.serving import Server
from tests.waiting import wait_until

CONFIG = """
[server]
max_socket_calls = 3
max_socket_message_bytes = 20000
header_timeout_s = 1.0
socket_ping_s = 1.0
[[models]]
id = "sandbox"
backend = "sandbox"
prices = { output_usd_per_mtok = "1000" }
"""
HELLO = {"role": "user", "content": "[[tokens:5]]"}
ENDLESS = {"role": "user", "content": "[[tokens:100000]] [[per_token:20ms]]"}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with Server(tmp_path_factory.mktemp("ws"), config=CONFIG) as server:
        yield server


@pytest.fixture
async def socket(server: Server) -> AsyncIterator[ClientConnection]:
    async with opened(server, server.credentials["api_key"]) as socket:
        yield socket


def opened(server: Server, key: str = "", **options: Any) -> connect:
    headers = {"authorization": f"Bearer {key}"} if key else {}
    return connect(f"ws://127.0.0.1:{server.port}/v1/ws", additional_headers=headers, **options)


async def say(socket: ClientConnection, type_: str, id_: str = "", **members: Any) -> None:
    await socket.send(json.dumps({"type": type_, "id": id_, **members}))


async def hear(socket: ClientConnection) -> dict[str, Any]:
    frame: dict[str, Any] = json.loads(await asyncio.wait_for(socket.recv(), 20))
    return frame


async def until_end(socket: ClientConnection, id_: str) -> list[dict[str, Any]]:
    """This call's messages, others left out."""
    frames = [await hear(socket)]
    while frames[-1]["id"] != id_ or frames[-1]["type"] not in ("done", "error"):
        frames.append(await hear(socket))
    return [frame for frame in frames if frame["id"] == id_]


async def receipt(server: Server, request_id: str) -> Any:
    path, key = f"/v1/requests/{request_id}", server.credentials["api_key"]

    async def settled() -> bool:
        return (await asyncio.to_thread(server.get, path, key=key))[0] == 200

    await wait_until(settled, "the call is in the books")
    return (await asyncio.to_thread(server.get, path, key=key))[1]


async def test_a_chat_comes_in_deltas_and_is_charged_as_any_other(server: Server, socket: ClientConnection) -> None:
    await say(socket, "chat.create", "a", model="sandbox", messages=[HELLO])
    frames = await until_end(socket, "a")
    assert {frame["type"] for frame in frames[:-1]} == {"delta"}
    assert frames[0]["data"]["object"] == "chat.completion.chunk"
    done = frames[-1]
    assert (done["type"], done["usage"]["completion_tokens"]) == ("done", 5)
    kept = await receipt(server, done["request_id"])
    assert (kept["endpoint"], kept["cost_usd"]) == ("/v1/ws", done["cost_usd"])
    assert done["cost_usd"] != "0"


async def test_an_answer_that_is_not_to_stream_is_one_result(socket: ClientConnection) -> None:
    await say(socket, "chat.create", "a", model="sandbox", messages=[HELLO], stream=False)
    result, done = await until_end(socket, "a")
    assert result["data"]["object"] == "chat.completion"
    assert done["type"] == "done"


async def test_predictions_are_results(socket: ClientConnection) -> None:
    await say(socket, "predict.create", "p", model="iris", inputs=[[5.1, 3.5, 1.4, 0.2]])
    result, done = await until_end(socket, "p")
    assert result["data"]["predictions"][0]["label"] == "setosa"
    assert (done["model"], done["model_version"]) == ("iris", "2")


async def test_calls_run_side_by_side_up_to_the_bound(socket: ClientConnection) -> None:
    for id_ in ("a", "b", "c"):
        await say(socket, "chat.create", id_, model="sandbox", messages=[ENDLESS])
    seen = set()
    while len(seen) < 3:
        seen.add((await hear(socket))["id"])
    await say(socket, "chat.create", "d", model="sandbox", messages=[HELLO])
    (refused,) = await until_end(socket, "d")
    assert (refused["status"], refused["error"]["code"]) == (503, "overloaded")
    await say(socket, "chat.create", "a", model="sandbox", messages=[HELLO])
    frames = [await hear(socket)]
    while frames[-1]["type"] != "error":
        frames.append(await hear(socket))
    assert frames[-1]["error"]["param"] == "id"


async def test_a_cancelled_call_stops_and_costs_what_was_produced(server: Server, socket: ClientConnection) -> None:
    await say(socket, "chat.create", "a", model="sandbox", messages=[ENDLESS])
    for _ in range(5):
        await hear(socket)
    await say(socket, "cancel", "a")
    end = (await until_end(socket, "a"))[-1]
    assert (end["type"], end["error"]["code"]) == ("error", "call_cancelled")
    kept = await receipt(server, end["request_id"])
    assert 1 <= kept["output_tokens"] < 1000
    assert kept["cost_usd"] == end["cost_usd"] != "0"
    # The connection goes on.
    await say(socket, "cancel", "a")
    await say(socket, "chat.create", "a", model="sandbox", messages=[HELLO])
    assert (await until_end(socket, "a"))[-1]["type"] == "done"


async def test_a_hang_up_stops_every_call(server: Server) -> None:
    def in_flight() -> float:
        text = Answer(*server.request("GET", "/metrics")).body.decode()
        return sum(
            float(line.split()[-1]) for line in text.splitlines() if line.startswith("modelport_calls_in_flight")
        )

    async with opened(server, server.credentials["api_key"]) as socket:
        for id_ in ("a", "b", "c"):
            await say(socket, "chat.create", id_, model="sandbox", messages=[ENDLESS])
        await hear(socket)
        assert await asyncio.to_thread(in_flight) > 0
        socket.transport.abort()

    async def quiet() -> bool:
        return await asyncio.to_thread(in_flight) == 0

    await wait_until(quiet, "no call is in flight")


async def test_a_key_may_come_in_the_first_message(server: Server) -> None:
    async with opened(server) as socket:
        await say(socket, "auth", key=server.credentials["api_key"])
        assert (await hear(socket))["type"] == "ready"
        await say(socket, "chat.create", "a", model="sandbox", messages=[HELLO])
        assert (await until_end(socket, "a"))[-1]["type"] == "done"


@pytest.mark.parametrize("first", [{"type": "auth", "key": "nonsense"}, {"type": "chat.create", "id": "a"}])
async def test_without_a_good_key_nothing_is_done(server: Server, first: dict[str, str]) -> None:
    async with opened(server) as socket:
        await socket.send(json.dumps(first))
        assert (await hear(socket))["error"]["code"] == "invalid_api_key"
        with pytest.raises(ConnectionClosed):
            await hear(socket)
        assert socket.close_code == 1008


async def test_who_never_sends_a_key_is_sent_away(server: Server) -> None:
    async with opened(server) as socket:
        assert (await hear(socket))["error"]["code"] == "invalid_api_key"
        with pytest.raises(ConnectionClosed):
            await hear(socket)


async def test_a_bad_key_in_a_header_is_refused_before_the_protocol_is_switched(server: Server) -> None:
    with pytest.raises(InvalidStatus) as refused:
        await opened(server, "nonsense")
    assert refused.value.response.status_code == 401


async def test_a_message_that_is_wrong_is_told_and_the_connection_goes_on(socket: ClientConnection) -> None:
    for wrong in ("nonsense", "[]", '{"type": "destroy"}', '{"type": "chat.create"}', "[" * 5000, "\x00"):
        await socket.send(wrong)
        assert (await hear(socket))["error"]["code"] == "invalid_request_error"
    await say(socket, "chat.create", "a", model="nobody", messages=[HELLO])
    assert (await until_end(socket, "a"))[-1]["error"]["code"] == "model_not_found"
    await say(socket, "chat.create", "a", model="sandbox", messages=[HELLO])
    assert (await until_end(socket, "a"))[-1]["type"] == "done"


async def test_a_message_beyond_the_bound_closes_also_in_fragments(server: Server) -> None:
    for message in ("x" * 30_000, ["x" * 9_000] * 4):
        async with opened(server, server.credentials["api_key"]) as socket:
            with contextlib.suppress(ConnectionClosed):
                await socket.send(message)
            with pytest.raises(ConnectionClosed):
                await hear(socket)
            assert socket.close_code == 1009


async def test_the_server_pings_and_answers_pings(server: Server, socket: ClientConnection) -> None:
    await asyncio.wait_for(await socket.ping(), 10)


async def test_a_plain_get_is_told_to_upgrade(server: Server) -> None:
    answer = Answer(*server.request("GET", "/v1/ws", key=server.credentials["api_key"]))
    assert (answer.status, answer.headers["upgrade"]) == (426, "websocket")


async def test_a_stopping_server_ends_its_sockets(tmp_path_factory: pytest.TempPathFactory) -> None:
    server = Server(tmp_path_factory.mktemp("stop"), config=CONFIG).start()
    async with opened(server, server.credentials["api_key"]) as socket:
        slow = {"role": "user", "content": "[[tokens:20]] [[per_token:50ms]]"}
        await say(socket, "chat.create", "a", model="sandbox", messages=[slow])
        await hear(socket)
        stopped = asyncio.create_task(asyncio.to_thread(server.stop))
        assert (await until_end(socket, "a"))[-1]["type"] == "done"
        with pytest.raises(ConnectionClosed):
            await hear(socket)
        assert socket.close_code == 1001
    assert await stopped == 0
