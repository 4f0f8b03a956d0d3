"""Money as integers of nano-dollars (10^-9 USD). The only place that rounds.

A price is nano-dollars per **million** units, so that $0.0375 per million tokens is the integer 37_500_000.
"""

from __future__ import annotations

from decimal import Decimal, InvalidOperation

NANOS_PER_USD = 1_000_000_000
# Beyond any price or budget, and its nano-dollars still fit a database's 64-bit integer.
MAX_USD = 1_000_000_000
_MILLION = 1_000_000
_PER_CENT = NANOS_PER_USD // 100


def parse_usd(text: str | int | Decimal) -> int:
    """Nano-dollars of a decimal amount of dollars, such as `"0.15"`.

    Raises: ValueError when it is no finite decimal, finer than a nano-dollar (nothing is rounded silently)
    or beyond `MAX_USD`.
    """
    try:
        amount = Decimal(text)
    except InvalidOperation:
        raise ValueError(f"{text!r} is no decimal amount of dollars, such as 0.15") from None
    if not amount.is_finite():
        raise ValueError(f"{text!r} is not a finite amount")
    if abs(amount) > MAX_USD:
        raise ValueError(f"{text!r} is more than {MAX_USD:,} dollars")
    nanos = amount * NANOS_PER_USD
    if nanos != nanos.to_integral_value():
        raise ValueError(f"{text!r} is finer than a nano-dollar (9 decimals)")
    return int(nanos)


def format_usd(nanos: int) -> str:
    """Dollars as a decimal string without an exponent; at least two decimals, at most nine."""
    whole, fraction = divmod(abs(nanos), NANOS_PER_USD)
    cents, rest = divmod(fraction, _PER_CENT)
    text = f"{whole}.{cents:02d}{rest:07d}".rstrip("0") if rest else f"{whole}.{cents:02d}"
    return text if nanos >= 0 else "-" + text


def per_million(units_times_price: int) -> int:
    """Nano-dollars of a sum of `units * nanos_per_million_units`, rounded half to even, once."""
    return divide(units_times_price, _MILLION)


def divide(amount: int, parts: int) -> int:
    """`amount / parts` as an integer, rounded half to even. `parts` is positive."""
    quotient, rest = divmod(amount, parts)
    doubled = rest * 2
    if doubled > parts or (doubled == parts and quotient % 2):
        return quotient + 1
    return quotient
