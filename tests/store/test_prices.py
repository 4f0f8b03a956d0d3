"""Prices are dated: a change is a new row, an old call keeps its old price, and many starts add nothing."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
import sqlalchemy as sa

from modelport.calls import Usage
from modelport.db.engine import Database
from modelport.db.schema import prices as prices_table
from modelport.errors import NotFound
from modelport.kit.clock import ManualClock
from modelport.metering import store
from modelport.metering.model import Price
from modelport.metering.prices import PriceBook
from modelport.metering.service import UsageService
from modelport.settings import ModelSettings, PriceSettings, TargetSettings, UpstreamSettings
from tests.store.metering import event, ledger

USAGE = Usage(1_000_000, 0)
OPENAI = UpstreamSettings(name="primary", base_url="https://api.openai.com/v1")
PROXY = UpstreamSettings(name="proxy", base_url="http://127.0.0.1:9/v1")


def model(usd: str | None = "1.00", *, upstream: str = "primary", name: str = "gpt-4o-mini") -> ModelSettings:
    rates = None if usd is None else PriceSettings(input_usd_per_mtok=usd)
    return ModelSettings(id="m", targets=[TargetSettings(upstream=upstream, model=name)], prices=rates)


def cost(book: PriceBook, *, at_us: int) -> int:
    return book.cost("m", USAGE, at_us=at_us, latency_us=0, discount_basis_points=0)[0]


async def rows(db: Database) -> list[Price]:
    async with db.connect() as conn:
        return await store.list_prices(conn)


async def test_an_old_call_keeps_its_old_price(any_database: Database) -> None:
    clock = ManualClock()
    book = PriceBook(any_database, clock=clock)
    await book.seed([model("1.00")], [OPENAI])
    first_us = clock.now_us()
    clock.advance(3600)
    await book.seed([model("3.00")], [OPENAI])
    second_us = clock.now_us()
    assert cost(book, at_us=first_us - 1) == 0
    assert cost(book, at_us=first_us) == cost(book, at_us=second_us - 1) == 1_000_000_000
    assert cost(book, at_us=second_us) == 3_000_000_000
    one = book.at("m", at_us=first_us)
    assert one is not None
    assert book.cost("m", USAGE, at_us=first_us, latency_us=0, discount_basis_points=0)[1] == one.id


async def test_a_start_without_a_change_adds_nothing(any_database: Database) -> None:
    clock = ManualClock()
    for _ in range(3):
        clock.advance(1)
        await PriceBook(any_database, clock=clock).seed([model("1.00")], [OPENAI])
    assert [row.model for row in await rows(any_database)] == ["m"]


async def test_many_workers_starting_at_once_add_one_row(any_database: Database) -> None:
    books = [PriceBook(any_database, clock=ManualClock()) for _ in range(4)]
    await asyncio.gather(*(book.seed([model("1.00")], [OPENAI]) for book in books))
    assert len(await rows(any_database)) == 1


async def test_two_changes_in_one_microsecond_are_two_prices(any_database: Database) -> None:
    clock = ManualClock()
    book = PriceBook(any_database, clock=clock)
    await book.seed([model("1.00")], [OPENAI])
    await book.seed([model("2.00")], [OPENAI])
    clock.advance(0.001)
    assert cost(book, at_us=clock.now_us()) == 2_000_000_000


async def test_a_known_upstream_model_has_its_listed_price_until_it_is_configured(any_database: Database) -> None:
    clock = ManualClock()
    book = PriceBook(any_database, clock=clock)
    await book.seed([model(None)], [OPENAI])
    listed = book.at("m", at_us=clock.now_us())
    assert listed is not None
    assert (listed.source, listed.input_nanos_per_mtok) == ("price list", 150_000_000)
    clock.advance(1)
    await book.seed([model("0.20")], [OPENAI])
    assert cost(book, at_us=clock.now_us()) == 200_000_000
    clock.advance(1)
    await book.seed([model(None, name="unheard-of")], [OPENAI])
    assert cost(book, at_us=clock.now_us()) == 0


async def test_a_model_behind_a_private_address_has_its_makers_price(any_database: Database) -> None:
    clock = ManualClock()
    book = PriceBook(any_database, clock=clock)
    await book.seed([model(None, upstream="proxy")], [PROXY])
    assert cost(book, at_us=clock.now_us()) == 150_000_000


async def test_a_model_that_nobody_prices_is_free_and_has_no_rows(any_database: Database) -> None:
    clock = ManualClock()
    book = PriceBook(any_database, clock=clock)
    await book.seed([ModelSettings(id="m", backend="sandbox")], [])
    assert book.cost("m", USAGE, at_us=clock.now_us(), latency_us=0, discount_basis_points=0) == (0, None)
    assert await rows(any_database) == []


@pytest.mark.parametrize(("asked", "nanos"), [(None, 9), ("2.00", 2_000_000_000)])
async def test_an_operators_price_gives_way_only_to_the_configuration(
    any_database: Database, asked: str | None, nanos: int
) -> None:
    clock = ManualClock()
    async with any_database.begin() as conn:
        own = Price("price_1", "m", clock.now_us(), input_nanos_per_mtok=9, source="operator")
        await store.insert_prices(conn, [own], now_us=clock.now_us())
    clock.advance(1)
    book = PriceBook(any_database, clock=clock)
    await book.seed([model(asked)], [OPENAI])
    assert cost(book, at_us=clock.now_us()) == nanos


async def test_a_price_that_another_process_set_arrives_with_a_reload(any_database: Database) -> None:
    clock = ManualClock()
    here, there = PriceBook(any_database, clock=clock), PriceBook(any_database, clock=clock)
    await here.start()
    await there.seed([model("1.00")], [OPENAI])
    await here.reload()
    await here.close()
    assert cost(here, at_us=clock.now_us()) == 1_000_000_000


async def test_a_receipt_shows_the_price_of_its_day_and_adds_up(any_database: Database, tmp_path: Path) -> None:
    clock = ManualClock()
    book = PriceBook(any_database, clock=clock)
    await book.seed([model("0.000001")], [OPENAI])
    usage = Usage(1_234_567, 7, cached_tokens=3)
    nanos, price_id = book.cost("m", usage, at_us=clock.now_us(), latency_us=5, discount_basis_points=333)
    charged = event(
        "a", input_tokens=1_234_567, output_tokens=7, cached_tokens=3, latency_us=5, cost_nanos=nanos,
        price_id=price_id, discount_basis_points=333, started_us=clock.now_us(),
    )  # fmt: skip
    async with ledger(any_database, tmp_path) as books:
        books.close(charged)
        clock.advance(60)
        await book.seed([model("9.00")], [OPENAI])
        service = UsageService(any_database, books)
        receipt = await service.get_receipt("org_alice", "a")
        assert sum(line.amount_nanos for line in receipt.lines) == nanos
        assert receipt.lines[0].unit_nanos == 1_000
        assert receipt.event == charged
        with pytest.raises(NotFound):
            await service.get_receipt("org_mallory", "a")


async def test_the_money_in_the_table_is_integers(any_database: Database) -> None:
    await PriceBook(any_database, clock=ManualClock()).seed([model("0.000000001")], [OPENAI])
    async with any_database.connect() as conn:
        assert (await conn.execute(sa.select(prices_table.c.input_nanos_per_mtok))).scalar() == 1
