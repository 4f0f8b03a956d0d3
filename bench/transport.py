"""CPU of the upstream path alone: `python -m bench.transport`. No server in front, no limits, no metering.

Prints µs of CPU (user and system) for a whole call, and for a received event beside the floor: a protocol on the same
event loop that takes the same bytes and does nothing with them. The upstream is a process of its own. Only ratios in
one run count.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import statistics
import time
from collections.abc import Awaitable, Callable
from multiprocessing.connection import Connection as Pipe
from typing import Any

import msgspec
import uvloop

from modelport.backends.openai import OpenAIBackend
from modelport.backends.transport import HttpPool, Timeouts
from modelport.calls import Call, Caller, Operation
from modelport.requests import ChatRequest
from modelport.settings import UpstreamSettings

EVENTS = 200
GAP_S = 0.004
STREAMS = 128
CALLS = 8_000
ROUNDS = 5
TIMEOUTS = Timeouts(connect_s=5, first_byte_s=60, between_bytes_s=60, total_s=60)

_HEAD = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": "upstream-model"}
_USAGE = {"prompt_tokens": 9, "completion_tokens": 12, "total_tokens": 21}
_JSON = msgspec.json.encode(
    {
        **_HEAD,
        "object": "chat.completion",
        "choices": [{"index": 0, "message": {"role": "assistant", "content": "x" * 500}, "finish_reason": "stop"}],
        "usage": _USAGE,
    }
)


def _event(delta: dict[str, str], finish: str | None = None) -> bytes:
    choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}
    data = b"data: " + msgspec.json.encode({**_HEAD, "choices": [choice], "usage": None}) + b"\n\n"
    return b"%x\r\n%b\r\n" % (len(data), data)


_EVENTS = [_event({"role": "assistant", "content": ""}), *(_event({"content": f"word{n}"}) for n in range(EVENTS - 1))]
_LAST = b"data: " + msgspec.json.encode({**_HEAD, "choices": [], "usage": _USAGE}) + b"\n\ndata: [DONE]\n\n"
_END = _event({}, "stop") + b"%x\r\n%b\r\n0\r\n\r\n" % (len(_LAST), _LAST)


class _Upstream(asyncio.Protocol):
    """Answers whatever comes in one read and ends with a brace; bodies here are small enough."""

    transport: Any

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        if b'"stream":true' in data:
            self.transport.write(
                b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
            )
            self._send(0)
        else:
            self.transport.write(b"HTTP/1.1 200 OK\r\ndate: x\r\ncontent-length: %d\r\n\r\n%b" % (len(_JSON), _JSON))

    def _send(self, number: int) -> None:
        if number < EVENTS:
            self.transport.write(_EVENTS[number])
            asyncio.get_running_loop().call_later(GAP_S, self._send, number + 1)
        else:
            self.transport.write(_END)


class _Floor(asyncio.Protocol):
    def __init__(self) -> None:
        self.done = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        transport.write(b'POST /x HTTP/1.1\r\n\r\n{"stream":true}')  # type: ignore[attr-defined]

    def data_received(self, data: bytes) -> None:
        if data.endswith(b"\r\n0\r\n\r\n"):
            self.done.set_result(None)


def _serve(pipe: Pipe) -> None:
    async def main() -> None:
        server = await asyncio.get_running_loop().create_server(_Upstream, "127.0.0.1", 0)
        pipe.send(server.sockets[0].getsockname()[1])
        await server.serve_forever()

    uvloop.run(main())


def _call(*, stream: bool) -> Call:
    body = {"model": "public", "messages": [{"role": "user", "content": "hello " * 330}]}
    raw = msgspec.json.encode(body | ({"stream": True} if stream else {}))
    return Call(
        id="req_" + "0" * 32,
        caller=Caller("org", "proj", "key", "live", frozenset(), "free"),
        endpoint="/v1/chat/completions",
        operation=Operation.CHAT,
        model="public",
        request=msgspec.json.decode(raw, type=ChatRequest),
        fields=msgspec.json.decode(raw, type=dict[str, msgspec.Raw]),
        started_us=0,
        started_s=time.monotonic(),
        deadline_s=time.monotonic() + 3_600,
        stream=stream,
    )


async def _cpu_us(work: Callable[[], Awaitable[None]], *, tasks: int, units: int) -> float:
    """CPU µs of this process for one of `units`, while `tasks` of `work` run at once."""
    before = time.process_time()
    await asyncio.gather(*(work() for _ in range(tasks)))
    return (time.process_time() - before) / units * 1e6


async def _measure(port: int) -> None:
    url = f"http://127.0.0.1:{port}/v1"
    backend = OpenAIBackend(UpstreamSettings(name="up", base_url=url), api_key="sk")
    pool = HttpPool("up", url, max_connections=STREAMS, max_body_bytes=1_000_000_000)
    whole, stream = _call(stream=False), _call(stream=True)

    async def floor() -> None:
        transport, protocol = await asyncio.get_running_loop().create_connection(_Floor, "127.0.0.1", port)
        await protocol.done
        transport.close()

    async def receive() -> None:
        response = await pool.request(b"POST", b"/x", body=b'{"stream":true}', timeouts=TIMEOUTS)
        while await response.receive():
            pass

    async def events() -> None:
        async for _ in backend.stream(stream, model="upstream-model", max_output_tokens=None):
            pass

    async def calls() -> None:
        for _ in range(CALLS // 32):
            async for _ in backend.stream(whole, model="upstream-model", max_output_tokens=None):
                pass

    found: dict[str, list[float]] = {}
    for _ in range(ROUNDS):
        found.setdefault("a whole call", []).append(await _cpu_us(calls, tasks=32, units=CALLS))
        for name, work in (("floor", floor), ("transport", receive), ("backend", events)):
            figure = await _cpu_us(work, tasks=STREAMS, units=STREAMS * (EVENTS + 1))
            found.setdefault(f"an event, {name}", []).append(figure)
    for name, figures in found.items():
        print(f"{name:20} {statistics.median(figures):6.1f} µs  ({min(figures):.1f} to {max(figures):.1f})")
    await backend.close()
    await pool.aclose()


def main() -> None:
    ours, theirs = multiprocessing.Pipe()
    upstream = multiprocessing.get_context("fork").Process(target=_serve, args=(theirs,), daemon=True)
    upstream.start()
    try:
        uvloop.run(_measure(ours.recv()))
    finally:
        upstream.kill()
        upstream.join()


if __name__ == "__main__":
    main()
