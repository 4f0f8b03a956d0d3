"""The built-in price list is complete in itself: every price in it is exact money."""

from __future__ import annotations

from pathlib import Path

from modelport.kit.money import parse_usd
from modelport.metering import price_list
from modelport.metering.price_list import listed_price

MAX_SNAPSHOT_BYTES = 200_000


def test_every_listed_price_is_money_that_is_not_negative() -> None:
    snapshot = price_list._snapshot()
    amounts = [usd for row in snapshot.providers.values() for rates in row.prices.values() for usd in rates if usd]
    assert len(amounts) > 1_000
    assert all(parse_usd(usd) >= 0 for usd in amounts)
    assert snapshot.origin
    assert snapshot.made


def test_every_maker_that_is_asked_is_listed() -> None:
    assert set(price_list._MAKERS) <= set(price_list._snapshot().providers)


def test_the_address_decides_whose_price_it_is() -> None:
    at_home = listed_price("https://api.openai.com/v1", "gpt-4o-mini")
    assert at_home == listed_price("http://127.0.0.1:9001/v1", "gpt-4o-mini")
    assert listed_price("https://api.anthropic.com/v1", "gpt-4o-mini") is None
    assert listed_price("http://127.0.0.1:9001/v1", "no-such-model") is None


def test_the_list_stays_small() -> None:
    assert Path(price_list.__file__).with_name("price_snapshot.json").stat().st_size < MAX_SNAPSHOT_BYTES
