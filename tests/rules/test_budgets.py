"""The arithmetic of budgets: a quote is never below the bill, and what is left is handed out in usable pieces."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelport.budgets.quote import PARTS, Quote, Rate
from modelport.budgets.rules import (
    UNLIMITED,
    Fit,
    check_tag,
    fit,
    holds_at,
    parse_limit,
    purse_at,
    purses_of,
    tightest,
)
from modelport.calls import Budget, Call, Caller, Operation, Usage
from modelport.errors import BadRequest
from modelport.inference.quoting import quote
from modelport.kit.clock import parse_rfc3339
from modelport.metering.model import Price
from modelport.metering.rules import cost_nanos
from modelport.requests import ChatRequest, Message
from modelport.state.protocol import MAX_AMOUNT, PURSE, Bucket, PurseLevel

_rates = st.builds(Rate, st.integers(0, 10**18), st.integers(0, 10**15))
_prices = st.builds(
    Price,
    id=st.just("price_1"),
    model=st.just("m"),
    valid_from_us=st.just(0),
    input_nanos_per_mtok=st.integers(0, 10**12),
    cached_nanos_per_mtok=st.none() | st.integers(0, 10**12),
    output_nanos_per_mtok=st.integers(0, 10**12),
    nanos_per_request=st.integers(0, 10**9),
    nanos_per_second=st.integers(0, 10**6),
)


def _budget(**facts: Any) -> Budget:
    known = {"id": "budget_1", "organization_id": "org_1", "scope": "organization", "target": "org_1"}
    known |= {"period": "day", "soft_nanos": None, "hard_nanos": 1_000, "created_us": 5}
    return Budget(**{**known, **facts})


def _call(discount_basis_points: int = 0, n: int = 1) -> Call:
    caller = Caller(
        organization_id="org_1",
        project_id="proj_1",
        key_id="key_1",
        mode="live",
        scopes=frozenset(),
        plan_id="plan_1",
        discount_basis_points=discount_basis_points,
    )
    return Call(
        id="req_1",
        caller=caller,
        endpoint="/v1/chat/completions",
        operation=Operation.CHAT,
        model="m",
        request=ChatRequest(model="m", messages=[Message(role="user", content="x")], n=n),
        fields={},
        started_us=0,
        started_s=0.0,
        deadline_s=600.0,
    )


def _level(limit: int, spent: int, held: int = 0) -> PurseLevel:
    return PurseLevel(Bucket("p", "budget", limit, PURSE, 0), max(limit - spent - held, 0), 0.0, spent, held)


@given(
    prices=st.lists(st.none() | _prices, min_size=1, max_size=3),
    which=st.integers(0, 2),
    tokens=st.tuples(st.integers(0, 10_000), st.integers(0, 5_000), st.integers(0, 10_000)),
    latency_us=st.integers(0, 600_000_000),
    discount=st.integers(0, 10_000),
    choices=st.integers(1, 4),
)
def test_whichever_model_answers_whatever_is_cached_the_bill_is_never_above_the_quote(
    prices: list[Price | None],
    which: int,
    tokens: tuple[int, int, int],
    latency_us: int,
    discount: int,
    choices: int,
) -> None:
    inputs, output, cached = tokens
    call = _call(discount, choices)
    worst = quote(call, prices, input_tokens=inputs, exact=True, output_tokens=output).nanos(output)
    price = prices[which % len(prices)]
    if price is not None:
        usage = Usage(inputs, output * choices, cached_tokens=min(cached, inputs))
        bill = cost_nanos(price, usage, latency_us=latency_us, discount_basis_points=discount)
        assert min(bill, MAX_AMOUNT) <= worst


def test_an_estimate_of_the_input_is_taken_for_half_of_the_truth() -> None:
    price = Price("p", "m", 0, input_nanos_per_mtok=1_000_000_000)
    exact, estimated = (quote(_call(), [price], input_tokens=10, exact=e, output_tokens=1) for e in (True, False))
    assert (exact.nanos(1), estimated.nanos(1)) == (10_000, 20_000)


@given(rates=st.lists(_rates, min_size=1, max_size=3), wanted=st.integers(1, 10_000), choices=st.integers(1, 4),
       nanos=st.integers(0, MAX_AMOUNT - 1))  # fmt: skip
def test_what_an_amount_can_pay_for_costs_no_more_and_one_token_more_would(
    rates: list[Rate], wanted: int, choices: int, nanos: int
) -> None:
    asked = Quote(tuple(rates), wanted, choices)
    tokens = asked.affordable_tokens(nanos)
    assert 0 <= tokens <= wanted
    if tokens:
        assert asked.nanos(tokens) <= nanos
    if tokens < wanted:
        assert asked.nanos(tokens + 1) > nanos


_levels = st.lists(
    st.builds(_level, st.integers(0, 1_000) | st.just(UNLIMITED), st.integers(0, 1_200), st.integers(0, 500)),
    min_size=1,
    max_size=3,
)


@given(levels=_levels, fixed=st.integers(0, 200), per_token=st.integers(0, 20), wanted=st.integers(1, 100))
def test_a_call_is_tried_waits_or_is_refused_for_good_reason(
    levels: list[PurseLevel], fixed: int, per_token: int, wanted: int
) -> None:
    asked = Quote((Rate(fixed * PARTS, per_token * PARTS),), wanted)
    verdict, tokens = fit(asked, levels)
    limited = [level for level in levels if level.bucket.limit < UNLIMITED]
    whole = min((level.bucket.limit - (level.spent or 0) for level in limited), default=UNLIMITED)
    free = min((level.bucket.limit - (level.spent or 0) - level.held for level in limited), default=UNLIMITED)
    if verdict is Fit.TAKE:
        assert tokens is not None
        assert asked.nanos(tokens) <= free
        assert tokens == wanted or (asked.nanos(wanted) > whole and 2 * free >= whole)
    elif verdict is Fit.SPENT:
        assert asked.nanos(1) > whole, "even the shortest answer is more than what could ever be left"
    else:
        assert free < whole, "there is somebody to wait for"


def test_a_call_whose_length_nothing_bounds_is_taken_whole_or_not_at_all() -> None:
    asked = Quote((Rate(100 * PARTS, 0),))
    assert fit(asked, [_level(1_000, 900)]) == (Fit.TAKE, None)
    assert fit(asked, [_level(1_000, 901)])[0] is Fit.SPENT
    assert fit(asked, [_level(1_000, 800, 150)])[0] is Fit.WAIT


def test_the_tightest_purse_is_the_one_with_the_least_left() -> None:
    levels = [_level(100, 50), _level(1_000, 990), _level(UNLIMITED, 10**9)]
    assert tightest(levels) is levels[1]
    assert tightest(levels[2:]) is None


@pytest.mark.parametrize(
    ("period", "at", "start", "end"),
    [
        ("day", "2026-11-30T23:59:59.999999Z", "2026-11-30T00:00:00Z", "2026-12-01T00:00:00Z"),
        ("day", "2026-12-01T00:00:00Z", "2026-12-01T00:00:00Z", "2026-12-02T00:00:00Z"),
        ("month", "2026-12-31T23:59:59.999999Z", "2026-12-01T00:00:00Z", "2027-01-01T00:00:00Z"),
        ("month", "2028-02-29T12:00:00Z", "2028-02-01T00:00:00Z", "2028-03-01T00:00:00Z"),
    ],
)
def test_a_period_is_the_calendars_in_utc(period: str, at: str, start: str, end: str) -> None:
    purse = purse_at(_budget(period=period), parse_rfc3339(at))
    assert (purse.start_us, purse.end_us) == (parse_rfc3339(start), parse_rfc3339(end))
    assert purse.key == f"budget_1:{start[:10]}"


def test_a_total_is_counted_from_its_budgets_creation_without_an_end() -> None:
    purse = purse_at(_budget(period="total"), 10**15)
    assert (purse.key, purse.start_us, purse.end_us) == ("budget_1:total", 5, None)


def test_a_tags_budget_concerns_calls_that_carry_it() -> None:
    budgets = [_budget(), _budget(id="budget_2", scope="tag", target="feature=a=b")]
    keys = [[purse.budget.id for purse in purses_of(budgets, tags, 0)] for tags in ({}, {"feature": "a=b"})]
    assert keys == [["budget_1"], ["budget_1", "budget_2"]]
    assert purses_of(budgets[1:], {"feature": "a"}, 0) == []


def test_without_a_hard_limit_nothing_is_reserved() -> None:
    assert purse_at(_budget(hard_nanos=None, soft_nanos=5), 0).bucket(70).amount == 0
    assert purse_at(_budget(), 0).bucket(70) == Bucket("budget_1:1970-01-01", "budget", 1_000, PURSE, 70)


@pytest.mark.parametrize("text", ["-0.01", "nan", "inf", "", "0.0000000001", "4503599.627370497", "1e99"])
def test_no_amount_is_guessed(text: str) -> None:
    with pytest.raises(BadRequest):
        parse_limit(text, param="hard_limit_usd")


def test_amounts_are_exact() -> None:
    assert parse_limit("0.000000001", param="x") == 1
    assert parse_limit("4503599.627370496", param="x") == 2**52
    assert parse_limit(None, param="x") is None


@pytest.mark.parametrize("target", ["a", "a=", "=b", "a b=c", 'a"=c', "a" * 65 + "=c", "a=" + "c" * 513])
def test_a_tag_is_a_name_and_a_value(target: str) -> None:
    check_tag("feature=a=b c ü")
    with pytest.raises(BadRequest):
        check_tag(target)


@pytest.mark.parametrize("period", ["day", "month", "total"])
def test_a_purse_that_is_remembered_holds_in_its_own_period_alone(period: str) -> None:
    budget = _budget(period=period)
    purse = purse_at(budget, parse_rfc3339("2026-03-31T23:59:59Z"))
    for at in ("2026-03-31T00:00:00Z", "2026-03-31T23:59:59.999999Z", "2026-04-01T00:00:00Z", "2026-02-28T23:59:59Z"):
        at_us = parse_rfc3339(at)
        assert holds_at(purse, budget, at_us) == (purse_at(budget, at_us).key == purse.key), at
    assert holds_at(purse, _budget(period=period), purse.start_us), "the same budget, read another time"
    assert not holds_at(purse, _budget(period=period, hard_nanos=2_000), purse.start_us), "a changed budget"
