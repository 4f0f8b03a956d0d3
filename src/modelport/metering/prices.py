"""The price book: dated prices from the database in memory, and what a call costs by them."""

from __future__ import annotations

import asyncio
import dataclasses
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from operator import attrgetter

import structlog

from modelport.calls import Usage
from modelport.db.engine import Database
from modelport.kit.clock import Clock
from modelport.kit.ids import IdSource
from modelport.kit.money import parse_usd
from modelport.metering import store
from modelport.metering.model import Price
from modelport.metering.price_list import listed_price
from modelport.metering.rules import cost_nanos
from modelport.settings import ModelSettings, PriceSettings, UpstreamSettings

# A price that another process changed holds here at most this much later.
RELOAD_INTERVAL_S = 15.0
CONFIGURED, LISTED, FREE = "configuration", "price list", "none"

_log = structlog.get_logger("modelport.metering")
_valid_from = attrgetter("valid_from_us")


class PriceBook:
    """One per process. Concurrency: look-ups from any thread; the rest on the event loop's."""

    def __init__(self, db: Database, *, clock: Clock) -> None:
        self._db = db
        self._clock = clock
        self._ids = IdSource(clock)
        # Each model's prices, oldest first.
        self._prices: dict[str, list[Price]] = {}
        self._reloading: asyncio.Task[None] | None = None

    async def start(self, models: Sequence[ModelSettings] = (), upstreams: Sequence[UpstreamSettings] = ()) -> None:
        """Date what the configuration changed, read the book, and keep reading it. Raises: Unavailable."""
        await self.seed(models, upstreams)
        self._reloading = asyncio.create_task(self._reload_forever())

    async def close(self) -> None:
        """Stop reading. Idempotent."""
        if self._reloading is not None:
            self._reloading.cancel()
            await asyncio.gather(self._reloading, return_exceptions=True)
            self._reloading = None

    async def seed(self, models: Sequence[ModelSettings], upstreams: Sequence[UpstreamSettings]) -> None:
        """Add a row, valid from now on, for each model whose price is not the current one.

        Several processes may do this at once: one of them adds the row. Raises: Unavailable.
        """
        now_us = self._clock.now_us()
        addresses = {row.name: row.base_url for row in upstreams}
        async with self._db.begin() as conn:
            await store.lock_prices(conn)
            known = _by_model(await store.list_prices(conn))
            rows = []
            for model in models:
                wanted = wanted_price(model, addresses)
                current = known.get(model.id, [None])[-1]
                if _differs(wanted, current):
                    valid_from_us = now_us if current is None else max(now_us, current.valid_from_us + 1)
                    rows.append(dataclasses.replace(wanted, id=self._ids.new("price_"), valid_from_us=valid_from_us))
            await store.insert_prices(conn, rows, now_us=now_us)
        await self.reload()

    async def reload(self) -> None:
        """Read every price again. Raises: Unavailable, with the book as it was."""
        async with self._db.connect() as conn:
            self._prices = _by_model(await store.list_prices(conn))

    def at(self, model: str, *, at_us: int) -> Price | None:
        """The price that held at that instant; None where the model was free."""
        prices = self._prices.get(model)
        if not prices:
            return None
        price = prices[-1]
        if price.valid_from_us <= at_us:
            return price
        index = bisect_right(prices, at_us, key=_valid_from)
        return prices[index - 1] if index else None

    def cost(
        self, model: str, usage: Usage, *, at_us: int, latency_us: int, discount_basis_points: int
    ) -> tuple[int, str | None]:
        """What a call that began at `at_us` costs in nano-dollars, and the id of its price; (0, None) when free."""
        price = self.at(model, at_us=at_us)
        if price is None:
            return 0, None
        nanos = cost_nanos(price, usage, latency_us=latency_us, discount_basis_points=discount_basis_points)
        return nanos, price.id

    async def _reload_forever(self) -> None:
        while True:
            await asyncio.sleep(RELOAD_INTERVAL_S)
            try:
                await self.reload()
            except Exception as error:  # noqa: BLE001  The worker loop: the book stays as it was until the next time.
                _log.warning("prices_not_reloaded", reason=f"{error!r:.300}")


def wanted_price(model: ModelSettings, addresses: dict[str, str]) -> Price:
    """The price that the configuration asks for, without id and date: its own, the list's, or free.

    `addresses` are the upstreams' base URLs by name.
    """
    if model.prices is not None:
        return _price(model.id, model.prices, CONFIGURED)
    for target in model.targets:
        rates = listed_rates(addresses.get(target.upstream, ""), target.model or model.id)
        if rates is not None:
            return _price(model.id, rates, LISTED)
    return Price("", model.id, 0, source=FREE)


def listed_rates(base_url: str, model: str) -> PriceSettings | None:
    """What the upstream at `base_url` asks for its `model`, by the built-in list; None where it has no such row."""
    listed = listed_price(base_url, model)
    if listed is None:
        return None
    return PriceSettings(
        input_usd_per_mtok=listed.input, cached_usd_per_mtok=listed.cached, output_usd_per_mtok=listed.output
    )


def _price(model: str, rates: PriceSettings, source: str) -> Price:
    cached = rates.cached_usd_per_mtok
    return Price(
        id="",
        model=model,
        valid_from_us=0,
        input_nanos_per_mtok=parse_usd(rates.input_usd_per_mtok),
        cached_nanos_per_mtok=None if cached is None else parse_usd(cached),
        output_nanos_per_mtok=parse_usd(rates.output_usd_per_mtok),
        nanos_per_request=parse_usd(rates.usd_per_request),
        nanos_per_image=parse_usd(rates.usd_per_image),
        nanos_per_second=parse_usd(rates.usd_per_second),
        source=source,
    )


def _differs(wanted: Price, current: Price | None) -> bool:
    """Whether a new row is due. A price that an operator set gives way to the configuration's own, to nothing less."""
    if current is None:
        return wanted.source != FREE
    if current.source not in (CONFIGURED, LISTED, FREE) and wanted.source != CONFIGURED:
        return False
    return wanted.rates != current.rates


def _by_model(prices: Iterable[Price]) -> dict[str, list[Price]]:
    book: dict[str, list[Price]] = {}
    for price in prices:
        book.setdefault(price.model, []).append(price)
    return book
