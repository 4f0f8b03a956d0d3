"""A client that hangs up stops the engine at once and pays for what was produced until then, no more and no less."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from modelport.backends.llamacpp.backend import LlamaCppBackend
from modelport.backends.llamacpp.options import LlamaCppOptions
from modelport.backends.protocol import Status
from modelport.catalog.handover import Places
from tests.campaign import rounds
from tests.serving import Server
from tests.waiting import wait_until

MODEL = "smollm2-135m-instruct"
AT_ONCE = 8
# Tokens that the engine may make for a call between the moment its client is seen to be gone and its next look.
IN_FLIGHT = 2
# So few calls fall into one window of the limit, which then must count just what the receipts say.
A_MINUTES_WORTH = 150


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    # A receipt for each of a thousand calls is more than the management API gives out in a minute.
    config = "[limits]\nmanagement_per_minute = 100000\n"
    with Server(tmp_path_factory.mktemp("hangups"), config=config) as server:
        yield server


async def test_hang_ups_are_charged_exactly_and_leave_nothing_behind(server: Server) -> None:
    key = await asyncio.to_thread(_key, server)
    place = Places(server.data_dir / "run").find(MODEL, "1")
    assert place is not None
    engine = LlamaCppBackend(Path(place.socket), options=LlamaCppOptions())
    await engine.start()
    await wait_until(lambda: engine.health().status is Status.READY, "the engine can be asked")
    before = (await engine.stats()).produced_tokens
    chance = random.Random(1)
    seen: dict[str, int] = {}
    for _ in range(rounds(short=60, full=1000) // AT_ONCE + 1):
        answers = await asyncio.gather(*(_hang_up(server, key, after=chance.randint(1, 30)) for _ in range(AT_ONCE)))
        seen.update(answers)

    async def idle() -> bool:
        stats = await engine.stats()
        return stats.busy == stats.queued == stats.engine_busy == 0

    await wait_until(idle, "the engine is idle", timeout_s=1.0)
    produced = (await engine.stats()).produced_tokens - before
    await engine.close()
    used, output = await asyncio.to_thread(_check_receipts, server, key, seen)
    assert 0 <= produced - output <= IN_FLIGHT * len(seen)
    if len(seen) < A_MINUTES_WORTH:
        assert await asyncio.to_thread(_tokens_taken, server, key) == used


def _key(server: Server) -> str:
    limits = {"concurrent_calls": AT_ONCE, "tokens_per_minute": 5_000_000}
    body = {"name": "hangups", "limits": limits, "scopes": ["inference", "usage:read"]}
    return json.loads(server.request("POST", "/v1/api_keys", body=body, key=server.credentials["api_key"])[2])["key"]


async def _hang_up(server: Server, key: str, *, after: int) -> tuple[str, int]:
    """Start a stream, read `after` pieces of text, close the socket: the call's id and the pieces that were seen."""
    body = json.dumps(
        {
            "model": MODEL,
            "stream": True,
            "max_tokens": 200,
            "messages": [{"role": "user", "content": "Tell me a long story about a fox and a river."}],
        }
    ).encode()
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {key}\r\n"
    writer.write(f"{head}content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n".encode() + body)
    call_id, pieces, finished = "", 0, False
    while pieces < after and not finished:
        line = await reader.readline()
        if line.lower().startswith(b"x-request-id:"):
            call_id = line.split(b":")[1].strip().decode()
        if line.startswith(b"data: {"):
            choice = json.loads(line[6:])["choices"][0]
            pieces += bool(choice["delta"].get("content"))
            finished = choice["finish_reason"] is not None
    writer.transport.abort()
    assert not finished, "the story was shorter than the pieces to be read"
    return call_id, pieces


def _check_receipts(server: Server, key: str, seen: dict[str, int]) -> tuple[int, int]:
    """Compare each receipt with what its client saw; the sums of all tokens and of output tokens charged."""
    used = output = 0
    for call_id, pieces in seen.items():
        status, receipt = server.get(f"/v1/requests/{call_id}", key=key)
        assert status == 200, receipt
        assert receipt["status"] == 499
        assert pieces <= receipt["output_tokens"]
        assert receipt["exact"] is True
        used += receipt["input_tokens"] + receipt["output_tokens"]
        output += receipt["output_tokens"]
    return used, output


def _tokens_taken(server: Server, key: str) -> int:
    """What the key's tokens-per-minute limit counts beside a last small call; every place must be free for it."""
    body = {"model": MODEL, "max_tokens": 1, "messages": [{"role": "user", "content": "hi"}]}
    status, headers, raw = server.request("POST", "/v1/chat/completions", body=body, key=key)
    assert status == 200, raw
    limit, left = int(headers["x-ratelimit-limit-tokens"]), int(headers["x-ratelimit-remaining-tokens"])
    return limit - left - json.loads(raw)["usage"]["prompt_tokens"] - 1
