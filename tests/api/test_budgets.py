"""Budgets through the front door: made, kept to the nano-dollar, and held to by every worker from the next call on."""

from __future__ import annotations

import asyncio
import http.client
import json
from collections.abc import Iterator
from decimal import Decimal
from typing import Any

import pytest

from tests.budget_calls import (
    CONFIG,
    INPUT_USD,
    OUTPUT_USD,
    chat,
    cost_of,
    key_budget,
    look,
    new_budget,
    new_key,
    spent,
    usage_of,
)
from tests.problems import check, check_end
from tests.rawhttp import Answer
from tests.serving import Server
from tests.waiting import wait_until

WORKERS = 2
NO_MONEY = [
    *("-1", "-0.000000001", "NaN", "Infinity", "-inf", "", "one", "1,5", "0x1", "0.0000000001", "1e30", "4503600"),
    *(1, 0.1, True, [], {}),
]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with Server(tmp_path_factory.mktemp("budgets"), config=CONFIG, workers=WORKERS) as server:
        yield server


def manage(server: Server, method: str, path: str, body: Any = None, *, key: str = "") -> Answer:
    return Answer(*server.request(method, path, body=body, key=key or server.credentials["api_key"]))


class TestManaging:
    def test_made_read_listed_changed_and_deleted(self, server: Server) -> None:
        key = new_key(server)
        made = new_budget(server, scope="key", target=key.id, soft_limit_usd="0.80", hard_limit_usd="1")
        assert made["id"].startswith("budget_")
        assert {name: made[name] for name in ("object", "scope", "target", "period")} == {
            "object": "budget",
            "scope": "key",
            "target": key.id,
            "period": "total",
        }
        assert (made["soft_limit_usd"], made["hard_limit_usd"]) == ("0.80", "1.00")
        assert (made["spent_usd"], made["reserved_usd"], made["remaining_usd"]) == ("0.00", "0.00", "1.00")
        assert (made["period_start"], made["period_end"]) == (made["created_at"], None)
        assert look(server, made) == made
        page = manage(server, "GET", "/v1/budgets?limit=1").json()
        assert (page["data"], page["first_id"], page["last_id"]) == ([made], made["id"], made["id"])
        patched = manage(server, "PATCH", f"/v1/budgets/{made['id']}", {"soft_limit_usd": None}).json()
        assert patched == {**made, "soft_limit_usd": None}
        gone = manage(server, "DELETE", f"/v1/budgets/{made['id']}")
        assert (gone.status, gone.json()) == (200, {"id": made["id"], "object": "budget", "deleted": True})
        check(manage(server, "GET", f"/v1/budgets/{made['id']}"), 404, "not_found")
        check(manage(server, "DELETE", f"/v1/budgets/{made['id']}"), 404, "not_found")

    def test_pages_follow_each_other(self, server: Server) -> None:
        made = [new_budget(server, scope="tag", target=f"page={n}", hard_limit_usd="1")["id"] for n in range(3)]
        seen, after = [], ""
        while True:
            page = manage(server, "GET", f"/v1/budgets?limit=2&order=asc{after}").json()
            seen += [budget["id"] for budget in page["data"]]
            if not page["has_more"]:
                break
            after = f"&after={page['last_id']}"
        assert seen[-3:] == made
        assert len(seen) == len(set(seen))

    @pytest.mark.parametrize("money", NO_MONEY)
    @pytest.mark.parametrize("member", ["soft_limit_usd", "hard_limit_usd"])
    def test_what_is_no_amount_of_dollars_is_refused(self, server: Server, money: Any, member: str) -> None:
        body = {"scope": "organization", "period": "day", member: money}
        answer = manage(server, "POST", "/v1/budgets", body)
        check(answer, 400, "invalid_request_error")
        assert answer.json()["error"]["param"] == member

    @pytest.mark.parametrize(
        ("body", "param"),
        [
            ({"scope": "organization"}, "hard_limit_usd"),
            ({"scope": "organization", "soft_limit_usd": "2", "hard_limit_usd": "1"}, "soft_limit_usd"),
            ({"scope": "key", "hard_limit_usd": "1"}, "target"),
            ({"scope": "project", "hard_limit_usd": "1"}, "target"),
            ({"scope": "tag", "hard_limit_usd": "1"}, "target"),
            ({"scope": "tag", "target": "feature", "hard_limit_usd": "1"}, "target"),
            ({"scope": "tag", "target": "=chat", "hard_limit_usd": "1"}, "target"),
            ({"scope": "tag", "target": "feature=", "hard_limit_usd": "1"}, "target"),
            ({"scope": "tag", "target": 'a"b=c', "hard_limit_usd": "1"}, "target"),
            ({"scope": "planet", "target": "earth", "hard_limit_usd": "1"}, "scope"),
            ({"scope": "organization", "period": "week", "hard_limit_usd": "1"}, "period"),
            ({"scope": "organization", "hard_limit_usd": "1", "spent_usd": "0"}, "spent_usd"),
        ],
    )
    def test_what_makes_no_budget_is_refused(self, server: Server, body: Any, param: str) -> None:
        answer = manage(server, "POST", "/v1/budgets", body)
        check(answer, 400, "invalid_request_error")
        assert answer.json()["error"]["param"] == param

    def test_targets_are_the_organizations_own(self, server: Server) -> None:
        for scope, target in (("key", "key_0"), ("project", "proj_0"), ("organization", "org_0")):
            body = {"scope": scope, "target": target, "hard_limit_usd": "1"}
            check(manage(server, "POST", "/v1/budgets", body), 404, "not_found")

    def test_a_target_has_one_budget_for_each_period(self, server: Server) -> None:
        facts = {"scope": "tag", "target": "once=only", "hard_limit_usd": "1"}
        for period in ("day", "month", "total"):
            assert manage(server, "POST", "/v1/budgets", {**facts, "period": period}).status == 201
        check(manage(server, "POST", "/v1/budgets", {**facts, "period": "day"}), 409, "conflict")

    def test_days_and_months_are_the_calendars(self, server: Server) -> None:
        for period in ("day", "month"):
            made = new_budget(server, scope="tag", target="calendar=utc", period=period, hard_limit_usd="1")
            assert made["period_start"].endswith("T00:00:00Z")
            assert made["period_end"].endswith("T00:00:00Z")
            assert made["period_start"] < made["created_at"] < made["period_end"]

    def test_test_keys_see_and_change_nothing(self, server: Server) -> None:
        test_key = server.credentials["test_api_key"]
        made = new_budget(server, scope="tag", target="test=keys", hard_limit_usd="1")
        body = {"scope": "organization", "hard_limit_usd": "1"}
        check(manage(server, "POST", "/v1/budgets", body, key=test_key), 403, "permission_denied")
        path = f"/v1/budgets/{made['id']}"
        check(manage(server, "PATCH", path, {"hard_limit_usd": "9"}, key=test_key), 403, "permission_denied")
        check(manage(server, "DELETE", path, key=test_key), 403, "permission_denied")
        assert manage(server, "GET", "/v1/limits", key=test_key).json()["budgets"] == []


class TestSpending:
    def test_what_was_spent_is_what_the_answers_cost_and_the_usage_report_says(self, server: Server) -> None:
        key, budget = key_budget(server, "1.00")
        costs = []
        for number in range(6):
            answer = chat(server, key, f"[[tokens:{number}]] hello", stream=False)
            assert answer.status == 200
            costs.append(Decimal(answer.headers["x-cost-usd"]))
            assert costs[-1] == cost_of(answer.json()["usage"])
            assert Decimal(answer.headers["x-budget-remaining-usd"]) == 1 - sum(costs)
        standing = look(server, budget)
        assert Decimal(standing["spent_usd"]) == sum(costs) == usage_of(server, key)
        assert standing["reserved_usd"] == "0.00"
        assert Decimal(standing["remaining_usd"]) == 1 - sum(costs)

    def test_a_stream_says_what_is_left_beside_its_own_reservation(self, server: Server) -> None:
        key, _ = key_budget(server, "1.00")
        answer = chat(server, key, "[[tokens:5]]", stream=True)
        assert check_end(answer) == "[DONE]"
        left = 1 - Decimal(answer.headers["x-budget-remaining-usd"])
        assert left > OUTPUT_USD * 5
        assert left % INPUT_USD == 0

    def test_a_spent_budget_refuses_before_anything_runs(self, server: Server) -> None:
        key, budget = key_budget(server, "0.000001")
        refused = chat(server, key, "[[latency:60s]]")
        check(refused, 429, "insufficient_quota")
        assert refused.json()["error"]["type"] == "insufficient_quota"
        assert refused.headers["x-budget-remaining-usd"] == "0.000001"
        assert look(server, budget)["spent_usd"] == "0.00"
        assert usage_of(server, key) == 0

    def test_elsewhere_a_spent_budget_is_402(self, server: Server) -> None:
        key, budget = key_budget(server, "0.0035")
        body = {"model": "picture", "inputs": ["x"]}
        answer = Answer(*server.request("POST", "/v1/predict", body=body, key=key.secret))
        assert answer.status == 200
        assert answer.headers["x-cost-usd"] == "0.001"
        refused = Answer(*server.request("POST", "/v1/predict", body=body, key=key.secret))
        check(refused, 402, "budget_exceeded", path="/v1/predict")
        assert refused.headers["x-should-retry"] == "false"
        assert spent(server, budget) == Decimal("0.001")

    def test_messages_are_held_to_budgets_in_their_own_words(self, server: Server) -> None:
        key, budget = key_budget(server, "0.0001")
        question = {"model": "sandbox", "max_tokens": 400, "messages": [{"role": "user", "content": "[[tokens:400]]"}]}
        headers = {"anthropic-version": "2023-06-01"}

        def ask() -> Answer:
            return Answer(*server.request("POST", "/v1/messages", body=question, key=key.secret, headers=headers))

        answer = ask()
        assert (answer.status, answer.json()["stop_reason"]) == (200, "max_tokens")
        assert Decimal("0.0001") - OUTPUT_USD < spent(server, budget) <= Decimal("0.0001")
        refused = ask()
        assert (refused.status, refused.json()["type"]) == (402, "error")
        assert refused.headers["x-should-retry"] == "false"

    def test_an_answer_is_made_as_long_as_the_budget_pays_for(self, server: Server) -> None:
        key, budget = key_budget(server, "0.0001")
        answer = chat(server, key, "[[tokens:400]]", max_tokens=400)
        usage = answer.json()["usage"]
        assert answer.json()["choices"][0]["finish_reason"] == "length"
        assert 1 <= usage["completion_tokens"] < 50
        assert Decimal("0.0001") - cost_of(usage) < OUTPUT_USD
        assert spent(server, budget) == cost_of(usage)
        check(chat(server, key), 429, "insufficient_quota")

    @pytest.mark.parametrize("members", [{"max_tokens": None}, {"max_tokens": None, "max_completion_tokens": 300}])
    def test_with_whatever_bound_the_caller_set_or_none(self, server: Server, members: Any) -> None:
        key, _ = key_budget(server, "0.0001")
        answer = chat(server, key, "[[tokens:300]]", n=2, **members)
        usage = answer.json()["usage"]
        assert [choice["finish_reason"] for choice in answer.json()["choices"]] == ["length", "length"]
        assert cost_of(usage) <= Decimal("0.0001") < cost_of(usage) + 2 * OUTPUT_USD

    @pytest.mark.parametrize("usage_wanted", [True, False])
    def test_a_stream_that_outgrows_its_bound_is_ended_properly_at_the_ceiling(
        self, server: Server, usage_wanted: bool
    ) -> None:
        key, budget = key_budget(server, "0.0001")
        options = {"stream_options": {"include_usage": True}} if usage_wanted else {}
        answer = chat(server, key, "[[tokens:5000]] [[unbounded]]", max_tokens=5000, stream=True, **options)
        assert check_end(answer) == "[DONE]"
        events = [json.loads(line[6:]) for line in answer.body.decode().split("\n") if line.startswith("data: {")]
        assert len({event["id"] for event in events}) == 1
        last = [event for event in events if event["choices"]][-1]
        assert last["choices"] == [{"index": 0, "delta": {}, "logprobs": None, "finish_reason": "length"}]
        assert bool(events[-1].get("usage")) == usage_wanted
        assert len(events) < 50
        assert spent(server, budget) == usage_of(server, key) <= Decimal("0.0001")
        assert spent(server, budget) > Decimal("0.0001") - OUTPUT_USD

    def test_and_so_is_its_json(self, server: Server) -> None:
        key, budget = key_budget(server, "0.0001")
        answer = chat(server, key, "[[tokens:5000]] [[unbounded]]", max_tokens=5000, n=2)
        reasons = [choice["finish_reason"] for choice in answer.json()["choices"]]
        assert reasons[0] == "length"
        assert spent(server, budget) <= Decimal("0.0001")

    def test_failures_are_free_and_give_the_reservation_back(self, server: Server) -> None:
        key, budget = key_budget(server, "1.00")
        assert chat(server, key, "[[error:500]]").status == 500
        assert chat(server, key, "[[tokens:9]] [[cut:3]]", max_tokens=9).status == 502
        standing = look(server, budget)
        assert (standing["spent_usd"], standing["reserved_usd"]) == ("0.00", "0.00")

    async def test_running_calls_are_reserved_and_a_hang_up_pays_for_what_was_made(self, server: Server) -> None:
        key, budget = key_budget(server, "1.00")
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
        text = "[[tokens:100]] [[hang:7]]"
        body = {"model": "sandbox", "messages": [{"role": "user", "content": text}], "max_tokens": 100, "stream": True}
        headers = {"authorization": f"Bearer {key.secret}", "content-type": "application/json"}
        connection.request("POST", "/v1/chat/completions", body=json.dumps(body), headers=headers)
        answer = connection.getresponse()
        while b"7" not in (line := answer.readline()) and not line.startswith(b"data"):
            pass
        standing = look(server, budget)
        assert standing["spent_usd"] == "0.00"
        assert Decimal(standing["reserved_usd"]) > OUTPUT_USD * 100
        answer.close()
        connection.close()
        await wait_until(lambda: look(server, budget)["reserved_usd"] == "0.00", "the hang-up is settled")
        assert OUTPUT_USD <= spent(server, budget) < OUTPUT_USD * 20
        assert spent(server, budget) == usage_of(server, key)

    async def test_a_call_waits_for_money_that_another_has_reserved(self, server: Server) -> None:
        """Neither is refused nor cut short, though the budget has no room for both reservations at once."""
        key, budget = key_budget(server, "0.0005")
        bound = {"max_tokens": 200}
        slow = asyncio.create_task(asyncio.to_thread(chat, server, key, "[[tokens:5]] [[latency:500ms]]", **bound))
        await wait_until(lambda: look(server, budget)["reserved_usd"] != "0.00", "the slow call has its reservation")
        quick = await asyncio.to_thread(chat, server, key, "[[tokens:20]]", **bound)
        for answer in (quick, await slow):
            assert answer.json()["choices"][0]["finish_reason"] == "stop"
        assert spent(server, budget) == usage_of(server, key)

    def test_test_keys_are_free(self, server: Server) -> None:
        made = new_budget(server, scope="organization", period="day", hard_limit_usd="0")
        try:
            check(chat(server, new_key(server)), 429, "insufficient_quota")
            answer = Answer(
                *server.request(
                    "POST",
                    "/v1/chat/completions",
                    body={"model": "sandbox", "messages": [{"role": "user", "content": "x"}]},
                    key=server.credentials["test_api_key"],
                )
            )
            assert answer.status == 200
            assert "x-budget-remaining-usd" not in answer.headers
        finally:
            manage(server, "DELETE", f"/v1/budgets/{made['id']}")

    def test_a_tags_budget_is_about_calls_that_carry_the_tag(self, server: Server) -> None:
        key = new_key(server)
        budget = new_budget(server, scope="tag", target="feature=paid", hard_limit_usd="0.0001")
        tags = {"metadata": {"feature": "paid", "team": "x"}}
        assert chat(server, key, "[[tokens:400]]", max_tokens=400, **tags).status == 200
        check(chat(server, key, **tags), 429, "insufficient_quota")
        for other in ({}, {"metadata": {"feature": "free"}}, {"metadata": {"team": "paid"}}):
            answer = chat(server, key, **other)
            assert answer.status == 200
            assert "x-budget-remaining-usd" not in answer.headers
        assert Decimal("0.00009") < spent(server, budget) <= Decimal("0.0001")

    def test_the_tightest_of_several_budgets_decides(self, server: Server) -> None:
        key, wide = key_budget(server, "1.00")
        tight = new_budget(server, scope="tag", target="team=tight", hard_limit_usd="0.0001")
        answer = chat(server, key, "[[tokens:400]]", max_tokens=400, metadata={"team": "tight"})
        assert answer.json()["choices"][0]["finish_reason"] == "length"
        assert Decimal(answer.headers["x-budget-remaining-usd"]) == Decimal("0.0001") - spent(server, tight)
        assert spent(server, wide) == spent(server, tight)
        assert chat(server, key, "[[tokens:400]]", max_tokens=400).json()["choices"][0]["finish_reason"] == "stop"


class TestEverywhereAtOnce:
    def test_a_new_budget_a_change_and_a_deletion_hold_at_the_next_call(self, server: Server) -> None:
        key = new_key(server)
        for _ in range(8):
            assert chat(server, key).status == 200
        budget = new_budget(server, scope="key", target=key.id, period="day", hard_limit_usd="0")
        for _ in range(8):
            check(chat(server, key), 429, "insufficient_quota")
        path = f"/v1/budgets/{budget['id']}"
        assert manage(server, "PATCH", path, {"hard_limit_usd": "1.00"}).status == 200
        for _ in range(8):
            assert chat(server, key).status == 200
        assert manage(server, "PATCH", path, {"hard_limit_usd": "0.00001"}).status == 200
        check(chat(server, key), 429, "insufficient_quota")
        assert manage(server, "DELETE", path).status == 200
        for _ in range(8):
            assert chat(server, key).status == 200

    def test_a_day_counts_what_was_spent_before_its_budget_was_made(self, server: Server) -> None:
        key = new_key(server)
        before = sum((Decimal(chat(server, key).headers["x-cost-usd"]) for _ in range(4)), Decimal(0))
        day = new_budget(server, scope="key", target=key.id, period="day", hard_limit_usd="1")
        total = new_budget(server, scope="key", target=key.id, period="total", hard_limit_usd="1")
        assert Decimal(day["spent_usd"]) == before == usage_of(server, key)
        assert total["spent_usd"] == "0.00"
        after = Decimal(chat(server, key).headers["x-cost-usd"])
        assert (spent(server, day), spent(server, total)) == (before + after, after)


class TestTelling:
    async def test_the_soft_limit_is_told_once_and_lets_calls_through(self, server: Server) -> None:
        key = new_key(server)
        facts = {"soft_limit_usd": "0.00002", "hard_limit_usd": None}
        budget = new_budget(server, scope="key", target=key.id, period="month", **facts)
        for _ in range(6):
            answer = chat(server, key)
            assert answer.status == 200
            assert "x-budget-remaining-usd" not in answer.headers, "nothing limits it"
        await wait_until(lambda: told(server, budget) == ["billing.limit_approaching"], "somebody is told")
        assert spent(server, budget) == usage_of(server, key) > Decimal("0.00002")
        assert look(server, budget)["remaining_usd"] is None

    async def test_a_refusal_is_told_once(self, server: Server) -> None:
        key, budget = key_budget(server, "0.00001")
        for _ in range(4):
            check(chat(server, key), 429, "insufficient_quota")
        await wait_until(lambda: told(server, budget) == ["billing.limit_reached"], "somebody is told")

    def test_what_budgets_did_is_counted(self, server: Server) -> None:
        key, _ = key_budget(server, "0.00001")
        check(chat(server, key), 429, "insufficient_quota")
        text = server.request("GET", "/metrics")[2].decode()
        assert 'modelport_budget_actions_total{action="refused"}' in text
        assert 'modelport_refusals_total{code="insufficient_quota"}' in text


class TestLimits:
    def test_what_is_left_of_limits_and_budgets(self, server: Server) -> None:
        key = new_key(
            server, limits={"requests_per_minute": 50, "concurrent_calls": 3}, scopes=["inference", "billing"]
        )
        budget = new_budget(server, scope="key", target=key.id, hard_limit_usd="1.00")
        assert chat(server, key).status == 200
        body = manage(server, "GET", "/v1/limits", key=key.secret).json()
        assert body["object"] == "limits"
        mine = {limit["name"]: limit for limit in body["limits"] if limit["scope"] == "key"}
        assert (mine["key-rpm"]["unit"], mine["key-rpm"]["limit"], mine["key-rpm"]["remaining"]) == ("requests", 50, 49)
        assert (mine["key-calls"]["unit"], mine["key-calls"]["remaining"]) == ("concurrent_calls", 3)
        assert mine["key-calls"]["window_s"] is None
        (found,) = [one for one in body["budgets"] if one["id"] == budget["id"]]
        assert found == look(server, budget)


def told(server: Server, budget: dict[str, Any]) -> list[str]:
    """What was said about this budget in the log, in order."""
    lines = [json.loads(line) for line in server.log.splitlines() if line.startswith("{")]
    return [line["event"] for line in lines if line.get("budget_id") == budget["id"]]
