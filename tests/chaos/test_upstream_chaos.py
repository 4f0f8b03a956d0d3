"""Two upstreams, one of them killed, frozen and slowed in turn under load: the clients hardly notice."""

from __future__ import annotations

import asyncio
import itertools
import sqlite3
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.campaign import rounds
from tests.chaos.fleet import Seen, steady
from tests.scripted_upstream import USAGE, ScriptedUpstream
from tests.serving import Server
from tests.waiting import wait_until

PER_SECOND = rounds(short=40, full=200)
# The short campaign disturbs each upstream in each way once; the full one goes on.
CAMPAIGN_S = rounds(short=0, full=600)
WINDOW_S = 3.0
CONFIG = """
default_models = false
{upstreams}
[[models]]
id = "both"
targets = [{{ upstream = "a", model = "ok" }}, {{ upstream = "b", model = "ok" }}]
prices = {{ input_usd_per_mtok = "1", output_usd_per_mtok = "2" }}
route.timeouts = {{ first_token_s = 0.6, answer_s = 0.6, connect_s = 0.6 }}
[limits]
management_per_minute = 100000
"""
UPSTREAM = """
[[upstreams]]
name = "{name}"
base_url = "{url}"
breaker = {{ window_s = 3, min_calls = 5, slow_call_s = 0.2, open_s = 0.5, probes = 2 }}
"""
GOOD_NANOS = USAGE["prompt_tokens"] * 1_000 + USAGE["completion_tokens"] * 2_000
Disturb = Callable[[ScriptedUpstream], object]
# What is done to an upstream, and how it is made well again.
WAYS: dict[str, tuple[Disturb, Disturb]] = {
    "killed": (ScriptedUpstream.kill, ScriptedUpstream.start),
    "frozen": (ScriptedUpstream.freeze, ScriptedUpstream.thaw),
    "slowed": (lambda upstream: upstream.behave("slow:0.4"), lambda upstream: upstream.behave(None)),
}


@pytest.fixture
def upstreams() -> Iterator[dict[str, ScriptedUpstream]]:
    with ScriptedUpstream() as a, ScriptedUpstream() as b:
        yield {"a": a, "b": b}


async def test_clients_hardly_notice(tmp_path: Path, upstreams: dict[str, ScriptedUpstream]) -> None:
    rows = "".join(UPSTREAM.format(name=name, url=upstream.url) for name, upstream in upstreams.items())
    server = Server(tmp_path, config=CONFIG.format(upstreams=rows), workers=2)
    await asyncio.to_thread(server.start)
    try:
        await _campaign(server, upstreams)
    finally:
        server.kill()


async def _campaign(server: Server, upstreams: dict[str, ScriptedUpstream]) -> None:
    """Disturb each upstream in each way, again and again in the full campaign, and look what the clients saw."""
    key = server.credentials["api_key"]
    async with steady(server, key, per_second=PER_SECOND, model="both") as seen:
        began_s = time.monotonic()
        for number, (way, name) in enumerate(itertools.cycle(itertools.product(WAYS, upstreams))):
            if number >= len(WAYS) * len(upstreams) and time.monotonic() - began_s >= CAMPAIGN_S:
                break
            await _answered(seen, PER_SECOND // 2)
            await _disturb(server, upstreams[name], name, way=way, seen=seen)
    await asyncio.to_thread(server.get, "/v1/usage", key=key)
    assert await asyncio.to_thread(server.stop) == 0
    _reconcile(server, seen)


async def _disturb(server: Server, upstream: ScriptedUpstream, name: str, *, way: str, seen: Seen) -> None:
    """One upstream is not well for a while: its circuit opens within its window, and closes when it is well again."""
    harm, mend = WAYS[way]
    await asyncio.to_thread(harm, upstream)
    await wait_until(
        lambda: asyncio.to_thread(_is, server, name, "open"), f"the circuit of {name}, {way}, is open",
        timeout_s=WINDOW_S,
    )  # fmt: skip
    await _answered(seen, PER_SECOND)
    await asyncio.to_thread(mend, upstream)
    await wait_until(lambda: asyncio.to_thread(_is, server, name, "closed"), f"the circuit of {name} is closed again")


async def _answered(seen: Seen, more: int) -> None:
    enough = seen.statuses.total() + more
    await wait_until(lambda: seen.statuses.total() >= enough, f"{more} more calls were answered")


def _is(server: Server, name: str, state: str) -> bool:
    """Whether the worker that is asked sees the circuit of this upstream so."""
    rows = server.get("/v1/admin/circuits", key=server.credentials["api_key"])[1]["data"]
    return any(row["upstream"] == name and row["state"] == state for row in rows)


def _reconcile(server: Server, seen: Seen) -> None:
    """The clients' errors are few, and every answer is in the table once, at the price of one answer."""
    calls, good = seen.statuses.total(), seen.statuses["200"]
    # A stream that has begun when its server is killed can't be moved on: its error event is the one that may be.
    assert calls - good <= max(calls // 1_000, 1), seen.statuses
    with sqlite3.connect(server.data_dir / "modelport.db") as connection:
        rows = connection.execute("SELECT call_id, status, cost_nanos, attempts FROM usage_events").fetchall()
    assert len(rows) == len({row[0] for row in rows}) == calls
    charged = {call_id: cost for call_id, status, cost, _ in rows if status == 200}
    assert set(seen.whole) == set(charged)
    assert set(charged.values()) == {GOOD_NANOS}
    assert {cost for _, status, cost, _ in rows if status != 200} <= {0}
    assert any(attempts is not None for *_, attempts in rows), "nothing was ever tried again"
