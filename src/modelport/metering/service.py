"""Usage as customers ask for it: reports and receipts, with their latest calls in them."""

from __future__ import annotations

from dataclasses import dataclass

from modelport.calls import Usage
from modelport.db.engine import Database
from modelport.errors import NotFound
from modelport.metering import store
from modelport.metering.ledger import Ledger
from modelport.metering.model import Attempt, Price, UsageEvent
from modelport.metering.queries import UsageQuery, UsageReport, usage_report
from modelport.metering.rules import PriceLine, price_lines


@dataclass(frozen=True, slots=True)
class Receipt:
    """One call: its event, the price it was charged by, and lines whose amounts add up to its cost exactly."""

    event: UsageEvent
    price: Price | None
    lines: list[PriceLine]

    @property
    def attempts(self) -> list[Attempt]:
        """Every attempt, in the order in which they began. A plain call's only one is made of the event itself, which
        does not keep the name of its target."""
        event = self.event
        if event.attempts is not None:
            return event.attempts
        return [
            Attempt(
                model=event.model,
                version=event.version,
                backend=event.backend,
                upstream="",
                upstream_model="",
                status=event.status,
                error_code=event.error_code,
                started_us=event.started_us,
                latency_us=event.latency_us,
                first_token_us=event.first_token_us,
                why=None,
            )
        ]


class UsageService:
    """Every answer holds what this process's callers did before they asked."""

    def __init__(self, db: Database, ledger: Ledger) -> None:
        self._db = db
        self._ledger = ledger

    async def report(self, organization_id: str, query: UsageQuery) -> UsageReport:
        """This organization's usage. Raises: BadRequest when it has too many rows; Unavailable."""
        await self._ledger.flush()
        async with self._db.connect() as conn:
            return await usage_report(conn, organization_id=organization_id, query=query)

    async def get_receipt(self, organization_id: str, call_id: str) -> Receipt:
        """One call of this organization. Raises: NotFound, for another organization's as well; Unavailable."""
        await self._ledger.flush()
        async with self._db.connect() as conn:
            event = await store.find_event(conn, organization_id=organization_id, call_id=call_id)
            if event is None:
                raise NotFound(f"There is no call {call_id[:64]!r}.", param="call_id")
            price = None if event.price_id is None else await store.find_price(conn, event.price_id)
        return Receipt(event, price, _lines(event, price))


def _lines(event: UsageEvent, price: Price | None) -> list[PriceLine]:
    """A receipt's lines; one more, `adjustment`, where what was charged is not what the price says."""
    lines: list[PriceLine] = []
    if price is not None:
        usage = Usage(
            event.input_tokens, event.output_tokens, cached_tokens=event.cached_tokens, images=event.images
        )  # fmt: skip
        lines = price_lines(
            price, usage, latency_us=event.latency_us, discount_basis_points=event.discount_basis_points
        )  # fmt: skip
    rest = event.cost_nanos - sum(line.amount_nanos for line in lines)
    return [*lines, PriceLine("adjustment", 1, rest, 1, rest)] if rest else lines
