"""An upstream in a process of its own, which can be killed, frozen and slowed, and misbehaves as it is told.

    with ScriptedUpstream() as upstream:
        ... a target { upstream = …, model = "status:503" } gets that from upstream.url ...
        upstream.behave("slow:0.5")     # every model, until told otherwise
        upstream.freeze()

What a request gets is the model's name: one of `BEHAVIOURS`, perhaps with `:argument`. A call that streams and one
that does not get the same misbehaviour, each in its own form.
"""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

from tests.serving import die_with_parent, free_port
from tests.upstream import (
    COMPLETION,
    Line,
    Received,
    Step,
    Upstream,
    chat_chunk,
    chat_events,
    chunk,
    drip,
    drop,
    error_answer,
    event,
    half_close,
    hang,
    head,
    json_answer,
    pause,
    raw,
    stream_answer,
    then,
)

ROOT = Path(__file__).resolve().parents[1]
_START_TIMEOUT_S = 20.0
# What every good answer uses: 9 tokens in, 2 out.
USAGE = COMPLETION["usage"]
EVENTS = chat_events(["Hel", "lo."], usage=USAGE)
BODY = json.dumps(COMPLETION).encode()
_SSE = head(content_type="text/event-stream", transfer_encoding="chunked")
_JSON = head(content_type="application/json", transfer_encoding="chunked")


def _begun(stream: bool) -> Step:
    """The head and the first half of a good answer."""
    if stream:
        return stream_answer(EVENTS[:2], end=False)
    return raw(_JSON, chunk(BODY[: len(BODY) // 2]))


def _head_only(stream: bool) -> Step:
    return raw(_SSE if stream else _JSON)


def _ok(stream: bool) -> Step:
    return stream_answer(EVENTS) if stream else json_answer(COMPLETION)


def _declared(stream: bool, *, more: int) -> Step:
    """An answer whose Content-Length is `more` bytes beyond its real length, on a connection that then ends."""
    body = b"".join(EVENTS) if stream else BODY
    kind = "text/event-stream" if stream else "application/json"
    return raw(head(content_type=kind, content_length=len(body) + more), body, close=True)


def _error_event(stream: bool) -> Step:
    trouble = {"error": {"message": "The engine died.", "type": "server_error", "code": 500}}
    return stream_answer([*EVENTS[:2], event(trouble)]) if stream else json_answer(trouble)


def _wrong_type(stream: bool) -> Step:
    page = b"<html><body>Welcome to nginx!</body></html>"
    return raw(head(content_type="text/html", content_length=len(page)) + page)


def _garbage_body(stream: bool, *, after: int) -> Step:
    garbage = b"data: {gar\xff\xfebage\n\n"
    return stream_answer([*EVENTS[:after], garbage]) if stream else json_answer(b'{"choices": [gar')


def _dripping(stream: bool) -> Step:
    token = chunk(event(chat_chunk({"content": "drip "})) if stream else b" ")
    return then(_head_only(stream), drip(token, gap_s=0.05))


_TOO_LONG = "This model's maximum context length is 10 tokens."
Make = Callable[[bool, str], Step]
BEHAVIOURS: dict[str, Make] = {
    "ok": lambda stream, _: _ok(stream),
    "status": lambda _, code: error_answer(int(code), f"scripted {code}"),
    "page": lambda _, code: json_answer(b"<html>Bad Gateway</html>", int(code)),
    "limited": lambda _, seconds: error_answer(429, "slow down", retry_after=seconds),
    "context": lambda *_: error_answer(400, _TOO_LONG),
    "content": lambda *_: json_answer({"error": {"message": "No.", "code": "content_filter"}}, 400),
    "hang": lambda *_: hang(),
    "hang_after_head": lambda stream, _: then(_head_only(stream), hang()),
    "hang_in_middle": lambda stream, _: then(_begun(stream), hang()),
    "drip": lambda stream, _: _dripping(stream),
    "slow": lambda stream, seconds: then(pause(float(seconds)), _ok(stream)),
    "slow_first_token": lambda stream, seconds: then(_head_only(stream), pause(float(seconds)), _body(stream)),
    "cut": lambda stream, _: then(_begun(stream), drop()),
    "cut_by_reset": lambda stream, _: then(_begun(stream), drop(reset=True)),
    "half_close": lambda stream, _: then(_begun(stream), half_close()),
    "short": lambda stream, _: _declared(stream, more=100),
    "long": lambda stream, _: _declared(stream, more=-10),
    "drop": lambda *_: drop(),
    "reset": lambda *_: drop(reset=True),
    "no_http": lambda *_: raw(b"\xff\xfe what is this \r\n\r\n", close=True),
    "garbage": lambda stream, _: _garbage_body(stream, after=2),
    # Behind a piece that only tells the role.
    "garbage_before_output": lambda stream, _: _garbage_body(stream, after=1),
    "wrong_type": lambda stream, _: _wrong_type(stream),
    "empty": lambda stream, _: stream_answer([b"data: [DONE]\n\n"]) if stream else json_answer(b""),
    "error_event": lambda stream, _: _error_event(stream),
}


def _body(stream: bool) -> Step:
    """All of a good answer but its head."""
    parts = EVENTS if stream else [BODY]
    return raw(*(chunk(part) for part in parts), b"0\r\n\r\n")


class ScriptedUpstream:
    """The process as a test holds it. `url` stays the same when it is killed and started again."""

    def __init__(self) -> None:
        self._port = free_port()
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}/v1"

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.kill()

    def start(self) -> Self:
        """Return when it takes calls. It has forgotten what it was told before."""
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.scripted_upstream", str(self._port)], cwd=ROOT, preexec_fn=die_with_parent
        )
        give_up = time.monotonic() + _START_TIMEOUT_S
        while True:
            with contextlib.suppress(OSError):
                self.told()
                return self
            if self._process.poll() is not None or time.monotonic() > give_up:
                self.kill()
                raise AssertionError("the scripted upstream did not come up")
            time.sleep(0.02)

    def kill(self) -> None:
        """`kill -9`."""
        assert self._process is not None
        self._process.kill()
        self._process.wait()

    def freeze(self) -> None:
        """SIGSTOP: connections stay open, and the kernel takes new ones; nothing is answered."""
        self._signal(signal.SIGSTOP)

    def thaw(self) -> None:
        self._signal(signal.SIGCONT)

    def behave(self, behaviour: str | None) -> None:
        """From now on do this for every model; None: what the model's name says."""
        self._control("POST", {"behave": behaviour})

    def told(self) -> dict[str, Any]:
        """How often each model was asked for (`asked`), and how often a caller hung up (`hangups`)."""
        return self._control("GET")

    def _signal(self, number: signal.Signals) -> None:
        assert self._process is not None
        self._process.send_signal(number)

    def _control(self, method: str, body: Any = None) -> dict[str, Any]:
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=10)
        try:
            connection.request(method, "/control", body=None if body is None else json.dumps(body))
            found: dict[str, Any] = json.loads(connection.getresponse().read())
            return found
        finally:
            connection.close()


class _Script:
    """What the process does with each request."""

    def __init__(self, upstream: Upstream) -> None:
        self._upstream = upstream
        self._everywhere: str | None = None
        self._asked: Counter[str] = Counter()
        self._hangups = 0

    async def step(self, line: Line, request: Received) -> None:
        # The requests of a long campaign are not needed and would fill the memory.
        self._upstream.requests.clear()
        if request.path == "/control":
            await self._control(request)(line, request)
            return
        asked = request.json()
        self._asked[asked["model"]] += 1
        name, _, argument = (self._everywhere or asked["model"]).partition(":")
        try:
            await BEHAVIOURS[name](bool(asked.get("stream")), argument)(line, request)
        finally:
            self._hangups += line.gone.is_set()

    def _control(self, request: Received) -> Step:
        if request.method == "POST":
            self._everywhere = request.json()["behave"]
        return json_answer({"asked": self._asked, "hangups": self._hangups})


async def _main(port: int) -> None:
    async with Upstream(port=port) as upstream:
        upstream.default = _Script(upstream).step
        await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(_main(int(sys.argv[1])))
