"""Money is exact: integers, rounded once, and a receipt's lines add up to what was charged."""

from __future__ import annotations

from fractions import Fraction

from hypothesis import given
from hypothesis import strategies as st

from modelport.calls import Usage
from modelport.kit.money import divide, format_usd, parse_usd, per_million
from modelport.metering.model import Price
from modelport.metering.rules import cost_nanos, price_lines

_rates = st.integers(0, 200_000_000_000)
_counts = st.integers(0, 5_000_000)
prices = st.builds(
    Price,
    id=st.just("price_1"),
    model=st.just("m"),
    valid_from_us=st.just(0),
    input_nanos_per_mtok=_rates,
    cached_nanos_per_mtok=st.none() | _rates,
    output_nanos_per_mtok=_rates,
    nanos_per_request=_rates,
    nanos_per_image=_rates,
    nanos_per_second=_rates,
)


@st.composite
def usages(draw: st.DrawFn) -> Usage:
    total = draw(_counts)
    return Usage(total, draw(_counts), cached_tokens=draw(st.integers(0, total)), images=draw(st.integers(0, 100)))


latencies = st.integers(0, 3_600_000_000)
discounts = st.integers(0, 10_000)


def exact(price: Price, usage: Usage, latency_us: int) -> Fraction:
    """The cost as a fraction, written down as a customer would reckon it."""
    cached_rate = price.input_nanos_per_mtok if price.cached_nanos_per_mtok is None else price.cached_nanos_per_mtok
    tokens = (
        (usage.input_tokens - usage.cached_tokens) * price.input_nanos_per_mtok
        + usage.cached_tokens * cached_rate
        + usage.output_tokens * price.output_nanos_per_mtok
    )
    seconds = Fraction(latency_us, 1_000_000) * price.nanos_per_second
    return Fraction(tokens, 1_000_000) + price.nanos_per_request + usage.images * price.nanos_per_image + seconds


@given(prices, usages(), latencies, discounts)
def test_a_cost_is_the_exact_amount_rounded_once(price: Price, usage: Usage, latency_us: int, discount: int) -> None:
    wanted = exact(price, usage, latency_us) * Fraction(10_000 - discount, 10_000)
    cost = cost_nanos(price, usage, latency_us=latency_us, discount_basis_points=discount)
    assert type(cost) is int
    assert cost == round(wanted)


@given(prices, usages(), latencies, discounts)
def test_the_lines_of_a_receipt_add_up_to_the_cost(price: Price, usage: Usage, latency_us: int, discount: int) -> None:
    lines = price_lines(price, usage, latency_us=latency_us, discount_basis_points=discount)
    cost = cost_nanos(price, usage, latency_us=latency_us, discount_basis_points=discount)
    assert sum(line.amount_nanos for line in lines) == cost
    assert all(type(number) is int for line in lines for number in (line.quantity, line.amount_nanos, line.unit_nanos))


@given(prices, usages(), latencies)
def test_no_line_is_off_by_more_than_a_nano_dollar(price: Price, usage: Usage, latency_us: int) -> None:
    for line in price_lines(price, usage, latency_us=latency_us, discount_basis_points=0):
        assert abs(line.amount_nanos - Fraction(line.quantity * line.unit_nanos, line.per)) <= 1


@given(prices, usages(), latencies, discounts, st.integers(0, 1_000))
def test_more_is_never_cheaper(price: Price, usage: Usage, latency_us: int, discount: int, more: int) -> None:
    def cost(usage: Usage, latency_us: int) -> int:
        return cost_nanos(price, usage, latency_us=latency_us, discount_basis_points=discount)

    base = cost(usage, latency_us)
    larger = Usage(usage.input_tokens + more, usage.output_tokens + more, usage.cached_tokens, images=usage.images)
    assert cost(larger, latency_us) >= base
    assert cost(usage, latency_us + more) >= base


@given(prices, usages(), latencies, discounts)
def test_a_discount_never_raises_and_never_turns_a_cost_negative(
    price: Price, usage: Usage, latency_us: int, discount: int
) -> None:
    full = cost_nanos(price, usage, latency_us=latency_us, discount_basis_points=0)
    assert 0 <= cost_nanos(price, usage, latency_us=latency_us, discount_basis_points=discount) <= full


@given(st.integers(-(10**30), 10**30), st.integers(1, 10**12))
def test_division_is_that_of_exact_fractions(amount: int, parts: int) -> None:
    assert divide(amount, parts) == round(Fraction(amount, parts))


@given(st.integers(-(10**18), 10**18))
def test_dollars_survive_being_written_and_read(nanos: int) -> None:
    assert parse_usd(format_usd(nanos)) == nanos


def test_halves_go_to_the_even_neighbour() -> None:
    assert [per_million(n) for n in (500_000, 1_500_000, 2_500_000, 499_999, 500_001)] == [0, 2, 2, 0, 1]


def test_a_known_call_costs_what_its_provider_would_bill() -> None:
    # 1,000 input tokens at $0.15 and 200 output tokens at $0.60 a million, 500 of the input cached at $0.075.
    price = Price("p", "m", 0, 150_000_000, 75_000_000, 600_000_000)
    usage = Usage(1_000, 200, cached_tokens=500)
    assert cost_nanos(price, usage, latency_us=0, discount_basis_points=0) == parse_usd("0.0002325")
    assert cost_nanos(price, usage, latency_us=0, discount_basis_points=1_000) == parse_usd("0.00020925")
