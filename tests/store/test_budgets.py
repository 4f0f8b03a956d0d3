"""Budgets on both databases: what was spent is what the usage events say, in any period and however the state ends."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import pytest

from modelport.access.announce import announced
from modelport.budgets import store
from modelport.budgets.model import BudgetChange, BudgetEvent, NewBudget, Standing
from modelport.budgets.quote import PARTS, Quote, Rate
from modelport.budgets.rules import purse_at
from modelport.budgets.service import MAX_BUDGETS, BudgetService
from modelport.budgets.treasury import Treasury
from modelport.calls import Budget, Call, Limits, Operation
from modelport.db.engine import Database
from modelport.errors import BudgetExceeded, Conflict, LimitExceeded, NotFound, PermissionDenied, Unprocessable
from modelport.inference.admission import Admission
from modelport.inference.cashier import Cashier, PaidReservation
from modelport.kit.clock import ManualClock, parse_rfc3339, rfc3339
from modelport.kit.ids import IdSource
from modelport.metering.store import insert_events
from modelport.observe.metrics import Metrics
from modelport.settings import BudgetsSettings
from modelport.state.memory import MemoryState
from tests.store.metering import event
from tests.store.world import ADDRESS, Tenant, World, open_world

NOON = parse_rfc3339("2026-11-30T12:00:00Z")


@dataclass
class Bank:
    """The services of one process with budgets, on a clock that stands still."""

    world: World
    clock: ManualClock
    treasury: Treasury
    budgets: BudgetService
    cashier: Cashier
    told: list[BudgetEvent] = field(default_factory=list)

    async def record(self, tenant: Tenant, id: str, nanos: int, *, at: str, **changes: Any) -> None:
        """A call that cost so much, as the ledger commits it."""
        facts = {
            "organization_id": tenant.organization_id,
            "project_id": tenant.project_id,
            "key_id": tenant.key.id,
            "cost_nanos": nanos,
            "started_us": parse_rfc3339(at),
        }
        async with self.world.db.begin() as conn:
            await insert_events(conn, [event(id, **{**facts, **changes})])

    async def budget(self, tenant: Tenant, **facts: Any) -> Standing:
        new = {"scope": "organization", "target": None, "period": "day", "soft_limit_usd": None}
        return await self.budgets.create(tenant.caller, NewBudget(**{**new, "hard_limit_usd": "0.000001", **facts}))

    async def call(self, tenant: Tenant, *, at_us: int | None = None, metadata: dict[str, str] | None = None) -> Call:
        """A call of the tenant's with the budgets that hold now, begun now or at `at_us`."""
        return Call(
            id=IdSource(self.clock).new("req_"),
            caller=await self.world.caller(tenant.secret),
            endpoint="/v1/chat/completions",
            operation=Operation.CHAT,
            model="sandbox",
            request=None,
            fields={},
            started_us=self.clock.now_us() if at_us is None else at_us,
            started_s=0.0,
            deadline_s=60.0,
            metadata=metadata or {},
        )

    async def pay(self, call: Call, nanos: int, *, cost: int | None = None) -> None:
        """Reserve `nanos` for the call and end it at its `cost` (all of them)."""
        reservation = await self.cashier.reserve(call, tokens=0, quote=_costs(nanos))
        assert isinstance(reservation, PaidReservation)
        await self.cashier.settle(reservation, tokens=0, cost_nanos=nanos if cost is None else cost)


def _costs(nanos: int) -> Quote:
    return Quote((Rate(nanos * PARTS, 0),))


async def _nothing() -> None:
    """Events are recorded by the tests themselves."""


@pytest.fixture
async def bank(any_database: Database) -> AsyncIterator[Bank]:
    clock = ManualClock(start_us=NOON)
    async with open_world(any_database, state=MemoryState(clock), clock=clock) as world:
        yield _bank(world, clock)


def _bank(world: World, clock: ManualClock) -> Bank:
    told: list[BudgetEvent] = []
    treasury = Treasury(world.db, world.state, clock=clock, flush=_nothing, progress=lambda: (0, 0), notify=told.append)
    budgets = BudgetService(
        world.db,
        treasury,
        clock=clock,
        ids=IdSource(clock),
        announce=lambda id_: announced(world.state, organization_id=id_),
    )
    settings = BudgetsSettings(wait_s=0.0)
    cashier = Cashier(world.limiter, treasury, clock=clock, settings=settings, metrics=Metrics())
    return Bank(world, clock, treasury, budgets, cashier, told)


class TestSums:
    async def test_each_scope_and_period_counts_its_own_calls(self, bank: Bank) -> None:
        alice, mallory = await bank.world.tenant("Alice"), await bank.world.tenant("Mallory")
        other = await bank.world.key_of(alice.organization_id, alice.project_id)
        today, this_month, before = "2026-11-30T00:00:00Z", "2026-11-29T23:59:59.999999Z", "2026-10-31T23:59:59Z"
        await bank.record(alice, "a", 1, at=today, metadata={"feature": "chat"})
        await bank.record(alice, "b", 2, at=this_month, metadata={"feature": "chat"})
        await bank.record(alice, "c", 4, at=before, metadata={"feature": "chat"})
        await bank.record(other, "d", 8, at=today, metadata={"feature": "search"})
        await bank.record(alice, "e", 16, at=today, project_id="proj_other")
        await bank.record(mallory, "f", 32, at=today, metadata={"feature": "chat"})
        expected = {
            ("organization", None): (25, 27),
            ("project", alice.project_id): (9, 11),
            ("key", alice.key.id): (17, 19),
            ("tag", "feature=chat"): (1, 3),
        }
        for (scope, target), (day, month) in expected.items():
            for period, nanos in (("day", day), ("month", month), ("total", 0)):
                standing = await bank.budget(alice, scope=scope, target=target, period=period)
                assert standing.spent_nanos == nanos, (scope, period)

    async def test_a_tag_with_any_value_is_found(self, bank: Bank) -> None:
        alice = await bank.world.tenant("Alice")
        for number, value in enumerate(("a'b", 'say "hi"', "100%", "ünïcode", "a=b=c", "\\", "5")):
            await bank.record(alice, f"v{number}", 3, at="2026-11-30T01:00:00Z", metadata={"my-tag.x": value})
            standing = await bank.budget(alice, scope="tag", target=f"my-tag.x={value}")
            assert standing.spent_nanos == 3, value


class TestService:
    async def test_what_a_caller_is_held_to_travels_with_the_key(self, bank: Bank) -> None:
        alice = await bank.world.tenant("Alice")
        other = await bank.world.key_of(alice.organization_id, alice.project_id)
        test_key = await bank.world.key_of(alice.organization_id, alice.project_id, mode="test")
        assert (await bank.world.caller(alice.secret)).budgets == ()
        made = [
            (await bank.budget(alice, scope=scope, target=target)).budget
            for scope, target in (
                ("organization", None),
                ("project", alice.project_id),
                ("key", alice.key.id),
                ("key", other.key.id),
                ("tag", "a=b"),
            )
        ]
        assert set((await bank.world.caller(alice.secret)).budgets) == {made[0], made[1], made[2], made[4]}
        assert set((await bank.world.caller(other.secret)).budgets) == {made[0], made[1], made[3], made[4]}
        assert (await bank.world.caller(test_key.secret)).budgets == ()

    async def test_mallory_sees_and_changes_nothing_of_alices(self, bank: Bank) -> None:
        alice, mallory = await bank.world.tenant("Alice"), await bank.world.tenant("Mallory")
        budget = (await bank.budget(alice)).budget
        for attempt in (
            bank.budgets.get(mallory.caller, budget.id),
            bank.budgets.update(mallory.caller, budget.id, BudgetChange(hard_limit_usd="9")),
            bank.budgets.delete(mallory.caller, budget.id),
            bank.budget(mallory, scope="key", target=alice.key.id),
            bank.budget(mallory, scope="project", target=alice.project_id),
            bank.budget(mallory, scope="organization", target=alice.organization_id),
        ):
            with pytest.raises(NotFound):
                await attempt
        page = await bank.budgets.list_page(mallory.caller, after=None, limit=10, order="asc")
        assert page.budgets == []
        assert (await bank.budgets.get(alice.caller, budget.id)).budget == budget
        assert (await bank.world.caller(mallory.secret)).budgets == ()

    async def test_one_for_each_target_and_period_even_at_once(self, bank: Bank) -> None:
        alice = await bank.world.tenant("Alice")
        made = await asyncio.gather(*(bank.budget(alice) for _ in range(5)), return_exceptions=True)
        assert sum(isinstance(one, Standing) for one in made) == 1
        assert sum(isinstance(one, Conflict) for one in made) == 4

    async def test_there_is_a_most_of_them(self, bank: Bank, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("modelport.budgets.service.MAX_BUDGETS", 3)
        alice = await bank.world.tenant("Alice")
        for number in range(3):
            await bank.budget(alice, scope="tag", target=f"n={number}")
        with pytest.raises(Unprocessable):
            await bank.budget(alice)
        assert MAX_BUDGETS == 200

    async def test_a_test_key_changes_nothing(self, bank: Bank) -> None:
        alice = await bank.world.tenant("Alice")
        test_key = await bank.world.key_of(alice.organization_id, alice.project_id, mode="test")
        budget = (await bank.budget(alice)).budget
        for attempt in (
            bank.budget(test_key, scope="tag", target="a=b"),
            bank.budgets.update(test_key.caller, budget.id, BudgetChange(hard_limit_usd="9")),
            bank.budgets.delete(test_key.caller, budget.id),
        ):
            with pytest.raises(PermissionDenied):
                await attempt


class TestPurses:
    async def test_the_first_call_finds_what_was_spent_before(self, bank: Bank) -> None:
        alice = await bank.world.tenant("Alice")
        await bank.record(alice, "a", 400, at="2026-11-30T08:00:00Z")
        budget = (await bank.budget(alice)).budget
        await bank.pay(await bank.call(alice), 500)
        with pytest.raises(BudgetExceeded) as refused:
            await bank.pay(await bank.call(alice), 101)
        assert refused.value.left_nanos == 100
        assert (await bank.budgets.get(alice.caller, budget.id)).spent_nanos == 900

    async def test_at_midnight_a_new_day_begins_and_a_call_belongs_to_the_day_it_began_in(self, bank: Bank) -> None:
        alice = await bank.world.tenant("Alice")
        budget = (await bank.budget(alice)).budget
        midnight_us = parse_rfc3339("2026-12-01T00:00:00Z")
        bank.clock.advance((midnight_us - 1 - NOON) / 1_000_000)
        late = await bank.cashier.reserve(await bank.call(alice), tokens=0, quote=_costs(1_000))
        assert isinstance(late, PaidReservation)
        with pytest.raises(LimitExceeded):
            await bank.pay(await bank.call(alice), 1_000)
        bank.clock.advance(0.000_001)
        await bank.pay(await bank.call(alice), 1_000, cost=600)
        await bank.cashier.settle(late, tokens=0, cost_nanos=700)
        standing = await bank.budgets.get(alice.caller, budget.id)
        assert (standing.spent_nanos, rfc3339(standing.start_us)) == (600, "2026-12-01T00:00:00Z")
        (yesterday,) = await bank.treasury.levels([purse_at(budget, midnight_us - 1)])
        assert (yesterday.spent, yesterday.held) == (700, 0)

    async def test_what_a_dead_process_left_is_raised_from_the_record(self, bank: Bank) -> None:
        """It charged its call in the journal and died before it told the state; a neighbour brought the event home."""
        alice = await bank.world.tenant("Alice")
        budget = (await bank.budget(alice)).budget
        await bank.pay(await bank.call(alice), 100)
        await bank.record(alice, "known", 100, at="2026-11-30T12:00:00Z")
        await bank.record(alice, "left by the dead", 300, at="2026-11-30T12:00:00Z")
        await bank.treasury.tend()
        assert (await bank.budgets.get(alice.caller, budget.id)).spent_nanos == 400
        await bank.treasury.tend()
        assert (await bank.budgets.get(alice.caller, budget.id)).spent_nanos == 400

    async def test_of_several_processes_one_sums(self, bank: Bank) -> None:
        alice = await bank.world.tenant("Alice")
        budget = (await bank.budget(alice)).budget
        banks = [bank, *(_bank(bank.world, bank.clock) for _ in range(3))]
        for one in banks:
            await one.pay(await one.call(alice), 100)
        await banks[2].treasury.tend()
        await bank.record(alice, "more", 777, at="2026-11-30T12:00:00Z")
        for one in (banks[0], banks[1], banks[3]):
            await one.treasury.tend()
        assert (await bank.budgets.get(alice.caller, budget.id)).spent_nanos == 400
        await banks[2].treasury.tend()
        assert (await bank.budgets.get(alice.caller, budget.id)).spent_nanos == 777

    async def test_a_state_without_its_memory_is_told_again(self, bank: Bank) -> None:
        alice = await bank.world.tenant("Alice")
        await bank.budget(alice)
        await bank.pay(await bank.call(alice), 300)
        await bank.record(alice, "a", 300, at="2026-11-30T12:00:00Z")
        bank.world.state._purses = type(bank.world.state._purses)()  # type: ignore[attr-defined]
        await bank.pay(await bank.call(alice), 700)
        with pytest.raises(BudgetExceeded):
            await bank.pay(await bank.call(alice), 1)

    async def test_a_limit_that_refuses_is_told_without_the_purses_and_takes_nothing_from_them(
        self, bank: Bank
    ) -> None:
        alice = await bank.world.tenant("Alice", limits=Limits(requests_per_minute=1))
        budget = (await bank.budget(alice)).budget
        await bank.pay(await bank.call(alice), 100)
        with pytest.raises(LimitExceeded) as refused:
            await bank.pay(await bank.call(alice), 100)
        assert refused.value.type == "requests"
        assert [level.bucket.name for level in refused.value.levels] == ["rpm"]  # type: ignore[attr-defined]
        standing = await bank.budgets.get(alice.caller, budget.id)
        assert (standing.spent_nanos, standing.reserved_nanos) == (100, 0)

    async def test_a_reservation_shows_the_limits_and_knows_what_is_left(self, bank: Bank) -> None:
        alice = await bank.world.tenant("Alice", limits=Limits(requests_per_minute=5, tokens_per_minute=1_000))
        await bank.budget(alice)
        quote = Quote((Rate(0, 10 * PARTS),), output_tokens=200)
        paid = await bank.cashier.reserve(await bank.call(alice), tokens=250, quote=quote)
        assert isinstance(paid, PaidReservation)
        assert (paid.output_tokens, paid.nanos) == (100, 1_000), "as long as the budget pays for"
        assert [(level.bucket.name, level.remaining) for level in paid.levels] == [("rpm", 4), ("tpm", 1_000 - 150)]
        assert (paid.left_nanos(), paid.left_nanos(300)) == (0, 700)
        await bank.cashier.settle(paid, tokens=60, cost_nanos=300)
        assert [level.remaining for level in await bank.world.limiter.levels(alice.caller)] == [4, 940]

    async def test_many_first_calls_ask_the_record_once(self, bank: Bank) -> None:
        alice = await bank.world.tenant("Alice")
        await bank.budget(alice, hard_limit_usd="0.00001")
        asked = 0

        async def flush() -> None:
            nonlocal asked
            asked += 1

        bank.treasury._flush = flush
        bank.world.state._purses = type(bank.world.state._purses)()  # type: ignore[attr-defined]
        calls = [await bank.call(alice) for _ in range(50)]
        await asyncio.gather(*(bank.pay(call, 200) for call in calls))
        assert asked == 1


class TestTelling:
    async def test_the_soft_limit_is_told_once_in_a_period_whoever_notices(self, bank: Bank) -> None:
        alice = await bank.world.tenant("Alice")
        await bank.budget(alice, soft_limit_usd="0.0000005", hard_limit_usd=None)
        banks = [bank, *(_bank(bank.world, bank.clock) for _ in range(2))]
        for one in banks:
            await one.pay(await one.call(alice), 100)
            await one.treasury.tend()
        assert [told for one in banks for told in one.told] == []
        for _ in range(2):
            for one in banks:
                await one.pay(await one.call(alice), 100)
                await one.treasury.tend()
        told = [told for one in banks for told in one.told]
        assert [event.type for event in told] == ["billing.limit_approaching"]
        assert told[0].spent_nanos >= 500
        bank.clock.advance(86_400)
        await bank.pay(await bank.call(alice), 600)
        await bank.treasury.tend()
        assert len([told for one in banks for told in one.told]) == 2, "and again in the next period"

    async def test_a_raised_limit_is_told_anew(self, bank: Bank) -> None:
        alice = await bank.world.tenant("Alice")
        budget = (await bank.budget(alice, soft_limit_usd="0.0000001", hard_limit_usd=None)).budget
        await bank.pay(await bank.call(alice), 200)
        await bank.treasury.tend()
        await bank.budgets.update(alice.caller, budget.id, BudgetChange(soft_limit_usd="0.0000003"))
        await bank.pay(await bank.call(alice), 200)
        await bank.treasury.tend()
        await bank.treasury.tend()
        assert [event.budget.soft_nanos for event in bank.told] == [100, 300]

    async def test_refusals_are_told_once(self, bank: Bank) -> None:
        alice = await bank.world.tenant("Alice")
        await bank.budget(alice)
        for _ in range(3):
            with pytest.raises(BudgetExceeded):
                await bank.pay(await bank.call(alice), 1_001)
            await bank.treasury.tend()
        assert [event.type for event in bank.told] == ["billing.limit_reached"]

    async def test_a_row_decides_who_tells(self, bank: Bank) -> None:
        alice = await bank.world.tenant("Alice")
        budget: Budget = (await bank.budget(alice)).budget

        async def mark(start_us: int) -> bool:
            async with bank.world.db.begin() as conn:
                return await store.mark_told(conn, budget_id=budget.id, column="reached_us", start_us=start_us)

        assert sum(await asyncio.gather(*(mark(7) for _ in range(6)))) == 1
        assert await mark(8)
        assert not await mark(8)


class TestAdmission:
    """The fence has moved and no message has come yet: a cached caller's budgets are read again all the same."""

    async def test_a_budget_made_while_a_call_was_on_its_way_holds_for_it(self, bank: Bank) -> None:
        alice = await bank.world.tenant("Alice", limits=Limits(requests_per_minute=9))
        call = await bank.call(alice)
        async with bank.world.ring() as ring:
            admission = Admission(ring, bank.world.limiter, bank.cashier)
            await ring.authenticate(alice.secret, address=ADDRESS)
            await _unannounced(bank, alice, hard_nanos=500)
            with pytest.raises(BudgetExceeded):
                await admission.reserve(call, alice.secret, tokens=0, quote=lambda: _costs(501))
            reservation = await admission.reserve(call, alice.secret, tokens=0, quote=lambda: _costs(500))
            assert isinstance(reservation, PaidReservation)
            assert [level.remaining for level in reservation.levels] == [8], "what was taken in vain was given back"

    async def test_a_budget_raised_while_a_call_was_on_its_way_lets_it_through(self, bank: Bank) -> None:
        alice = await bank.world.tenant("Alice")
        budget = (await bank.budget(alice)).budget
        call = await bank.call(alice)
        async with bank.world.ring() as ring:
            admission = Admission(ring, bank.world.limiter, bank.cashier)
            await ring.authenticate(alice.secret, address=ADDRESS)
            async with bank.world.db.begin() as conn:
                values = {"hard_nanos": 2_000}
                await store.update_budget(
                    conn, organization_id=alice.organization_id, budget_id=budget.id, values=values
                )
            await bank.world.state.raise_fence("keys")
            reservation = await admission.reserve(call, alice.secret, tokens=0, quote=lambda: _costs(1_500))
            assert isinstance(reservation, PaidReservation)
            await admission.settle(reservation, tokens=0, cost_nanos=1_500)
            with pytest.raises(BudgetExceeded):
                await admission.reserve(call, alice.secret, tokens=0, quote=lambda: _costs(501))


async def _unannounced(bank: Bank, tenant: Tenant, *, hard_nanos: int) -> None:
    """Make a budget, and let nobody know but by the fence."""
    budget = Budget(
        "budget_new", tenant.organization_id, "key", tenant.key.id, "day", soft_nanos=None, hard_nanos=hard_nanos,
        created_us=bank.clock.now_us(),
    )  # fmt: skip
    async with bank.world.db.begin() as conn:
        await store.insert_budget(conn, budget=budget)
    await bank.world.state.raise_fence("keys")
