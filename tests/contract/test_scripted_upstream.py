"""Each way in which an upstream misbehaves: what the client sees, what is billed, and what the metrics say.

Every row is asked twice, as a stream and as JSON, at a model that never tries again, so that the misbehaviour itself
shows. What comes of it with a second target stands behind.
"""

from __future__ import annotations

import json
import re
import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

import pytest

from tests.problems import check, check_end
from tests.rawhttp import Answer
from tests.scripted_upstream import BEHAVIOURS, USAGE, ScriptedUpstream
from tests.serving import Server
from tests.waiting import wait_until

# Dollars a million tokens in and out, so that a good answer costs 9 * 1000 + 2 * 2000 billionths.
GOOD_NANOS = USAGE["prompt_tokens"] * 1_000 + USAGE["completion_tokens"] * 2_000
CONFIG = """
default_models = false
[[models]]
id = "sandbox"
backend = "sandbox"
"""
UPSTREAM = """
[[upstreams]]
name = "{name}"
base_url = "{url}"
connect_timeout_s = 2
first_token_timeout_s = 0.5
between_tokens_timeout_s = 0.5
breaker.enabled = false
"""
ROW = """
[[models]]
id = "{id}"
targets = {targets}
prices = {{ input_usd_per_mtok = "1", output_usd_per_mtok = "2" }}
route.retry = {{ attempts = {attempts}, backoff_first_s = 0 }}
route.timeouts = {{ answer_s = 0.5, total_s = 3 }}
"""


@dataclass(frozen=True)
class Row:
    """What comes of a behaviour. `begun`: a stream's status line is out before the trouble shows, so it ends with an
    error event. `outcome`: of the attempt, as the metrics call it, for a stream and for JSON."""

    status: int
    code: str
    outcome: str
    begun: bool = False
    retry_after: str | None = None
    json_status: int | None = None
    json_code: str = ""
    json_outcome: str = ""


FAILED = Row(502, "upstream_failed", "failed")
BROKEN = Row(502, "upstream_failed", "broken", begun=True, json_outcome="failed")
TABLE: dict[str, Row] = {
    "ok": Row(200, "", "ok"),
    "slow:0.1": Row(200, "", "ok"),
    "slow_first_token:0.1": Row(200, "", "ok"),
    "status:400": Row(400, "why", "rejected"),
    "status:404": Row(404, "why", "rejected"),
    "status:422": Row(422, "why", "rejected"),
    "status:401": Row(502, "upstream_failed", "misconfigured"),
    "status:403": Row(502, "upstream_failed", "misconfigured"),
    "status:408": Row(504, "timeout", "timeout"),
    "status:429": Row(503, "overloaded", "rate_limit", retry_after="1"),
    "limited:7": Row(503, "overloaded", "rate_limit", retry_after="7"),
    "status:500": FAILED,
    "status:503": FAILED,
    "status:504": Row(504, "timeout", "timeout"),
    "page:404": Row(502, "upstream_failed", "misconfigured"),
    "page:502": FAILED,
    "context": Row(400, "why", "context"),
    "content": Row(400, "content_filter", "content_policy"),
    "hang": Row(504, "timeout", "timeout"),
    "hang_after_head": Row(504, "timeout", "timeout"),
    "hang_in_middle": Row(504, "timeout", "broken", begun=True, json_outcome="timeout"),
    "drip": Row(504, "timeout", "cancelled", begun=True, json_outcome="timeout"),
    "slow:1": Row(504, "timeout", "timeout"),
    "slow_first_token:1": Row(504, "timeout", "timeout"),
    "cut": BROKEN,
    "cut_by_reset": BROKEN,
    "half_close": BROKEN,
    "short": Row(200, "", "ok", json_status=502, json_code="upstream_failed", json_outcome="failed"),
    "long": Row(200, "", "ok", json_status=502, json_code="upstream_failed", json_outcome="failed"),
    "drop": FAILED,
    "reset": FAILED,
    "no_http": FAILED,
    "garbage": BROKEN,
    "garbage_before_output": Row(502, "upstream_failed", "failed", begun=True, json_outcome="failed"),
    "wrong_type": FAILED,
    "empty": Row(200, "", "ok", json_status=502, json_code="upstream_failed", json_outcome="failed"),
    "error_event": BROKEN,
}


def test_every_behaviour_is_in_the_table() -> None:
    assert {name.partition(":")[0] for name in TABLE} == set(BEHAVIOURS)


@pytest.fixture(scope="module")
def upstream() -> Iterator[ScriptedUpstream]:
    with ScriptedUpstream() as upstream:
        yield upstream


@pytest.fixture(scope="module")
def server(upstream: ScriptedUpstream, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    config = CONFIG + "".join(UPSTREAM.format(name=name, url=upstream.url) for name in ("far", "good"))
    for behaviour in TABLE:
        config += ROW.format(
            id=behaviour, targets=f'[{{ upstream = "far", model = "{behaviour}" }}]', attempts=1
        )  # fmt: skip
        both = f'[{{ upstream = "far", model = "{behaviour}" }}, {{ upstream = "good", model = "ok", weight = 0 }}]'
        config += ROW.format(id=f"two/{behaviour}", targets=both, attempts=3)
    with Server(tmp_path_factory.mktemp("scripted"), config=config) as server:
        yield server


def ask(server: Server, model: str, *, stream: bool) -> Answer:
    body: dict[str, Any] = {"model": model, "messages": [{"role": "user", "content": "Hello?"}], "stream": stream}
    if stream:
        body["stream_options"] = {"include_usage": True}
    key = server.credentials["api_key"]
    return Answer(*server.request("POST", "/v1/chat/completions", body=body, key=key))


def attempts_counted(server: Server, upstream: str) -> dict[str, float]:
    """How attempts ended, by the metrics."""
    text = server.request("GET", "/metrics")[2].decode()
    found = re.findall(r'^modelport_attempts_total\{outcome="(\w+)",upstream="(\w+)"\} (\S+)$', text, re.M)
    return {outcome: float(count) for outcome, name, count in found if name == upstream}


def receipt(server: Server, answer: Answer) -> dict[str, Any]:
    status, body = server.get(f"/v1/requests/{answer.headers['x-request-id']}", key=server.credentials["api_key"])
    assert status == 200, body
    return dict(body)


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "json"])
@pytest.mark.parametrize("behaviour", TABLE)
def test_what_is_seen_what_is_billed_and_what_is_counted(server: Server, behaviour: str, stream: bool) -> None:
    row = TABLE[behaviour]
    status, code, outcome = row.status, row.code, row.outcome
    if not stream:
        status, code = row.json_status or status, row.json_code or code
        outcome = row.json_outcome or outcome
    before = attempts_counted(server, "far").get(outcome, 0.0)
    answer = ask(server, behaviour, stream=stream)

    if stream and (row.begun or status == 200):
        last = check_end(answer)
        assert (last == "[DONE]") is (status == 200)
        if status != 200:
            assert json.loads(last)["error"]["code"] == code
    elif status == 200:
        assert answer.status == 200, answer.body
        assert answer.json()["choices"][0]["message"]["content"] == "Hello."
    elif outcome in ("rejected", "context", "content_policy"):
        assert (answer.status, answer.code) == (status, code)
        assert answer.headers["x-should-retry"] == "false"
    else:
        check(answer, status, code)
        assert answer.headers.get("retry-after") == row.retry_after
    assert "x-attempts" not in answer.headers

    bill = receipt(server, answer)
    assert bill["status"] == status
    assert bill["error_code"] == (code or None)
    cost_nanos = Decimal(bill["cost_usd"]) * 10**9
    if behaviour == "empty" and status == 200:
        # The upstream ended its stream well and said nothing, so what is charged is the prompt, by an estimate.
        assert not bill["exact"]
        assert bill["output_tokens"] == 0
    else:
        assert cost_nanos == (GOOD_NANOS if status == 200 else 0)
    assert len(bill["attempts"]) == 1
    assert attempts_counted(server, "far").get(outcome, 0.0) == before + 1


# With another target, only what lies with the request itself, or had begun, still shows.
SHOWS = {"rejected", "context", "content_policy", "broken", "cancelled"}


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "json"])
@pytest.mark.parametrize("behaviour", [name for name, row in TABLE.items() if row.status != 200 or row.json_status])
def test_with_a_second_target_the_client_sees_an_answer(server: Server, behaviour: str, stream: bool) -> None:
    row = TABLE[behaviour]
    outcome = row.outcome if stream else row.json_outcome or row.outcome
    answer = ask(server, f"two/{behaviour}", stream=stream)
    if outcome in SHOWS:
        assert answer.status != 200 or check_end(answer) != "[DONE]"
        assert "x-attempts" not in answer.headers
        return
    assert answer.status == 200, answer.body
    if outcome == "ok":
        return
    if outcome == "rate_limit" and "x-attempts" not in answer.headers:
        # The target asked for a rest a moment ago, so the other one was asked first.
        return
    assert answer.headers["x-attempts"] == "2"
    assert answer.headers["x-model-served"] == f"two/{behaviour}"
    assert "x-fallback" not in answer.headers
    if stream:
        assert check_end(answer) == "[DONE]"
    bill = receipt(server, answer)
    # Billed once, for the attempt that answered.
    assert (bill["status"], bill["input_tokens"], bill["output_tokens"]) == (200, 9, 2)
    first, second = bill["attempts"]
    assert (first["upstream"], first["upstream_model"], first["why"]) == ("far", behaviour, None)
    assert first["status"] == (row.status if stream else row.json_status or row.status)
    assert (second["upstream"], second["status"], second["why"]) == ("good", 200, outcome)


def test_a_call_that_hangs_is_hung_up_on(server: Server, upstream: ScriptedUpstream) -> None:
    """The upstream must not go on computing for a call that was given up."""
    before = upstream.told()["hangups"]
    ask(server, "two/hang", stream=True)
    assert upstream.told()["hangups"] == before + 1


async def test_no_call_is_billed_twice_and_none_is_forgotten(server: Server) -> None:
    """After everything above: one usage row for each call, with the cost of a good answer or none."""
    await wait_until(lambda: server.get("/v1/usage", key=server.credentials["api_key"])[0] == 200, "usage can be read")
    with sqlite3.connect(server.data_dir / "modelport.db") as connection:
        rows = connection.execute("SELECT call_id, status, cost_nanos, attempts FROM usage_events").fetchall()
    assert len(rows) == len({row[0] for row in rows})
    costs = {cost for _, status, cost, _ in rows if status != 200}
    assert costs <= {0}
    assert any(attempts is not None and attempts != "null" for *_, attempts in rows)
    assert all(attempts is None or len(json.loads(attempts)) > 1 for *_, attempts in rows)
