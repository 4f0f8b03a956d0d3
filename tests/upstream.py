"""A real HTTP server that misbehaves to order, for whatever calls upstreams.

    async with Upstream() as upstream:
        upstream.plan(json_answer(COMPLETION), status(429, retry_after="7"), hang())
        ... call upstream.url ...

Each request is answered by the next step of the plan, and by `upstream.default` once the plan is empty. A step is a
coroutine function that gets the connection and what was received; it writes whatever bytes it likes.
"""

from __future__ import annotations

import asyncio
import json
import ssl
from collections import deque
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

COMPLETION: dict[str, Any] = {
    "id": "chatcmpl-1",
    "object": "chat.completion",
    "created": 1_700_000_000,
    "model": "upstream-model",
    "choices": [
        {"index": 0, "message": {"role": "assistant", "content": "Hello."}, "logprobs": None, "finish_reason": "stop"}
    ],
    "usage": {"prompt_tokens": 9, "completion_tokens": 2, "total_tokens": 11},
}


@dataclass
class Received:
    """One request as it arrived. `number` counts the requests of its connection, from 0."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes
    number: int

    def json(self) -> Any:
        return json.loads(self.body)


@dataclass
class Line:
    """The connection that a step writes to. `gone` is set when the client has hung up."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    gone: asyncio.Event = field(default_factory=asyncio.Event)

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    def close(self) -> None:
        self.writer.close()

    def reset(self) -> None:
        """Close without the courtesy of an ending: the client gets a reset."""
        self.writer.transport.abort()


Step = Callable[[Line, Received], Awaitable[None]]


class Upstream:
    """The server. It listens on a free port of the loopback interface."""

    def __init__(self, *, tls: ssl.SSLContext | None = None, port: int = 0) -> None:
        self._tls = tls
        self._port = port
        self._server: asyncio.Server | None = None
        self._plan: deque[Step] = deque()
        self._tasks: set[asyncio.Task[None]] = set()
        self.default: Step = json_answer(COMPLETION)
        self.requests: list[Received] = []
        self.connections = 0
        self.open = 0
        self.lines: list[Line] = []

    @property
    def url(self) -> str:
        assert self._server is not None
        port = self._server.sockets[0].getsockname()[1]
        return f"https://localhost:{port}/v1" if self._tls else f"http://127.0.0.1:{port}/v1"

    def plan(self, *steps: Step) -> None:
        self._plan.extend(steps)

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self._port, ssl=self._tls)
        return self

    async def __aexit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        assert self._server is not None
        self._server.close()
        for line in self.lines:
            line.reset()
        await asyncio.gather(*self._tasks)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        self.connections += 1
        self.open += 1
        line = Line(reader, writer)
        self.lines.append(line)
        try:
            await self._converse(line)
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            self.open -= 1
            writer.transport.abort()

    async def _converse(self, line: Line) -> None:
        number, early = 0, b""
        while not line.writer.is_closing():
            request = await _receive(line.reader, number, early)
            self.requests.append(request)
            step = self._plan.popleft() if self._plan else self.default
            early = await self._take_step(step, line, request)
            number += 1

    async def _take_step(self, step: Step, line: Line, request: Received) -> bytes:
        """Run the step until it ends or the client hangs up. What was read of the next request while listening for
        the hang-up is returned."""
        answer = asyncio.ensure_future(step(line, request))
        hangup = asyncio.ensure_future(line.reader.read(1))
        try:
            await asyncio.wait((answer, hangup), return_when=asyncio.FIRST_COMPLETED)
            if hangup.done() and not hangup.result():
                line.gone.set()
                raise ConnectionResetError
            await answer
            return hangup.result() if hangup.done() else b""
        finally:
            answer.cancel()
            hangup.cancel()
            await asyncio.gather(answer, hangup, return_exceptions=True)


async def _receive(reader: asyncio.StreamReader, number: int, early: bytes) -> Received:
    head = (early + await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
    method, path, _ = head[0].split(" ")
    headers = {}
    for line in head[1:-2]:
        name, _, value = line.partition(":")
        headers[name.lower()] = value.strip()
    body = await reader.readexactly(int(headers.get("content-length", "0")))
    return Received(method, path, headers, body, number)


def raw(*parts: bytes, close: bool = False) -> Step:
    """Exactly these bytes, one write each; then the connection is closed if so wished."""

    async def step(line: Line, request: Received) -> None:
        for part in parts:
            await line.send(part)
            await asyncio.sleep(0)
        if close:
            line.close()

    return step


def head(code: int = 200, **headers: str | int) -> bytes:
    """A status line and headers; `content_type` is written `content-type`."""
    lines = [f"HTTP/1.1 {code} Whatever"] + [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return ("\r\n".join(lines) + "\r\n\r\n").encode()


def json_answer(body: Any, code: int = 200, **headers: str | int) -> Step:
    data = body if isinstance(body, bytes) else json.dumps(body, separators=(",", ":")).encode()
    return raw(head(code, content_type="application/json", content_length=len(data), **headers) + data)


def error_answer(code: int, message: str = "No.", *, kind: str = "some_error", **headers: str | int) -> Step:
    return json_answer({"error": {"message": message, "type": kind, "code": "why", "param": "p"}}, code, **headers)


def pause(seconds: float) -> Step:
    async def step(line: Line, request: Received) -> None:
        await asyncio.sleep(seconds)

    return step


def hang() -> Step:
    """Never answers; ends when the client hangs up or the server is stopped."""

    async def step(line: Line, request: Received) -> None:
        await asyncio.Event().wait()

    return step


def drip(data: bytes, *, gap_s: float) -> Step:
    """The same bytes again and again, with a gap between."""

    async def step(line: Line, request: Received) -> None:
        while True:
            await line.send(data)
            await asyncio.sleep(gap_s)

    return step


def then(*steps: Step) -> Step:
    """One step after the other, for one request."""

    async def step(line: Line, request: Received) -> None:
        for part in steps:
            await part(line, request)

    return step


def wait_for(event: asyncio.Event) -> Step:
    async def step(line: Line, request: Received) -> None:
        await event.wait()

    return step


def drop(*, reset: bool = False) -> Step:
    """Closes the connection without a byte."""

    async def step(line: Line, request: Received) -> None:
        if reset:
            line.reset()
        else:
            line.close()

    return step


def half_close() -> Step:
    """Ends its side of the connection and goes on listening, as a server that is being shut down may."""

    async def step(line: Line, request: Received) -> None:
        line.writer.write_eof()
        await asyncio.Event().wait()

    return step


def chunk(data: bytes) -> bytes:
    """`data` in the chunked transfer coding."""
    return b"%x\r\n%b\r\n" % (len(data), data)


def event(body: Any) -> bytes:
    """A server-sent event as OpenAI writes them."""
    return b"data: " + json.dumps(body, separators=(",", ":")).encode() + b"\n\n"


def chat_chunk(delta: dict[str, Any], *, finish: str | None = None, model: str = "upstream-model") -> dict[str, Any]:
    choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}
    return {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": model, "choices": [choice]}


def chat_events(tokens: Iterable[str], *, usage: dict[str, int] | None = None) -> list[bytes]:
    """A whole chat stream, `[DONE]` included. With `usage` as a server with `include_usage` writes it."""
    extra = {"usage": None} if usage else {}
    events = [event({**chat_chunk({"role": "assistant", "content": ""}), **extra})]
    events += [event({**chat_chunk({"content": token}), **extra}) for token in tokens]
    events.append(event({**chat_chunk({}, finish="stop"), **extra}))
    if usage:
        events.append(event({**chat_chunk({}), "choices": [], "usage": usage}))
    return [*events, b"data: [DONE]\n\n"]


def stream_answer(parts: Iterable[bytes], *, end: bool = True) -> Step:
    """The parts in the chunked coding, one chunk each; without `end` the last chunk is left out."""
    body = [chunk(part) for part in parts]
    opening = head(200, content_type="text/event-stream", transfer_encoding="chunked")
    return raw(opening, *body, *([b"0\r\n\r\n"] if end else []))
