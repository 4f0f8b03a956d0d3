"""The rules of computing calls together: nothing is lost or computed twice, turns are fair, costs are learnt."""

from __future__ import annotations

import itertools
import random
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelport.backends.batching.admission import Outlook, retry_after_s
from modelport.backends.batching.cost import CostModel
from modelport.backends.batching.queue import Batch, Entry, FairQueue
from modelport.backends.batching.work import Packing


@dataclass
class Push:
    tenant: str
    sizes: list[int]
    lane: str
    deadline_s: float


@dataclass
class Drop:
    which: int


@dataclass
class Take:
    pass


pushes = st.builds(
    Push,
    st.sampled_from(["ann", "bob", "eve"]),
    st.lists(st.integers(1, 9), min_size=1, max_size=12),
    st.sampled_from(["a", "b"]),
    st.sampled_from([5.0, 1e9]),
)
steps = st.lists(st.one_of(pushes, st.builds(Drop, st.integers(0, 30)), st.builds(Take)), max_size=40)


class Ledger:
    """Plays steps and notes what became of every row."""

    def __init__(self, packing: Packing) -> None:
        self.packing = packing
        self.queue = FairQueue(packing)
        self.entries: list[Entry] = []
        self.dropped: set[Entry] = set()
        self.expired: set[Entry] = set()
        self.rows: dict[Entry, list[tuple[int, int]]] = {}
        self.now_s = 0.0

    def play(self, step: Push | Drop | Take) -> None:
        self.now_s += 1.0
        if isinstance(step, Push):
            rows = [(len(self.entries), place) for place in range(len(step.sizes))]
            entry = Entry(step.tenant, rows, sizes=step.sizes, lane=step.lane, deadline_s=step.deadline_s)
            self.entries.append(entry)
            self.rows[entry] = []
            self.queue.push(entry)
        elif isinstance(step, Drop) and step.which < len(self.entries):
            self.queue.drop(self.entries[step.which])
            self.dropped.add(self.entries[step.which])
        elif isinstance(step, Take):
            self.take()

    def take(self) -> Batch:
        batch = self.queue.take(self.now_s)
        assert not self.dropped.intersection(batch.expired)
        self.expired.update(batch.expired)
        assert batch.count == sum(len(block) for _, _, block in batch.entries) <= self.packing.max_rows
        assert len({entry.lane for entry, _, _ in batch.entries}) <= 1
        if batch.count > 1 and self.packing.max_cost is not None:
            assert batch.cost <= self.packing.max_cost or len(batch.entries[0][2]) == 1
        for entry, first, block in batch.entries:
            assert entry not in self.dropped
            assert entry not in self.expired
            assert block[0][1] == first
            self.rows[entry].extend(block)
        return batch


@given(steps, st.sampled_from([Packing(4), Packing(8, 20), Packing(1)]))
def test_every_row_is_computed_once_unless_it_was_dropped_or_too_late(
    played: list[Push | Drop | Take], packing: Packing
) -> None:
    ledger = Ledger(packing)
    for step in played:
        ledger.play(step)
    while ledger.queue.waiting:
        assert ledger.take().count or ledger.expired
    assert not ledger.queue.busy
    for entry, rows in ledger.rows.items():
        assert rows == list(entry.rows[: len(rows)])
        if entry not in ledger.dropped and entry not in ledger.expired:
            assert len(rows) == len(entry.rows)


@given(st.lists(st.tuples(st.sampled_from("xyz"), st.sampled_from("ab")), max_size=60))
def test_calls_of_one_organization_begin_in_the_order_in_which_they_came(calls: list[tuple[str, str]]) -> None:
    """Within what goes together; beyond it, the oldest is never passed over twice."""
    queue = FairQueue(Packing(4))
    for number, (tenant, lane) in enumerate(calls):
        queue.push(Entry(tenant, [number], lane=lane))
    begun: list[int] = []
    while queue.waiting:
        batch = queue.take(0.0)
        begun += [block[0] for _, _, block in batch.entries]
    for tenant, lane in itertools.product("xyz", "ab"):
        own = [number for number in begun if calls[number] == (tenant, lane)]
        assert own == sorted(own)
    assert sorted(begun) == list(range(len(calls)))


@given(st.randoms(use_true_random=False), st.integers(2, 4), st.sampled_from([Packing(8), Packing(8, 64)]))
def test_organizations_that_wait_are_served_alike_whatever_they_send(
    rng: random.Random, tenants: int, packing: Packing
) -> None:
    """Between any two the difference is never more than two batches' worth, so no flood starves anybody."""
    queue = FairQueue(packing)
    served = dict.fromkeys(range(tenants), 0)
    waiting = dict.fromkeys(range(tenants), 0)
    for _ in range(60):
        for tenant in range(tenants):
            while waiting[tenant] < 100:
                sizes = [rng.randint(1, 16) for _ in range(rng.choice([1, 1, 5, 40]))]
                queue.push(Entry(str(tenant), sizes, sizes=sizes))
                waiting[tenant] += sum(sizes)
        for entry, _, block in queue.take(0.0).entries:
            served[int(entry.tenant)] += sum(block)
            waiting[int(entry.tenant)] -= sum(block)
        assert max(served.values()) - min(served.values()) <= 2 * 16 * packing.max_rows


def test_who_comes_back_from_a_pause_has_saved_nothing_up() -> None:
    queue = FairQueue(Packing(1))
    for number in range(10):
        queue.push(Entry("busy", [number]))
    for _ in range(6):
        queue.take(0.0)
    for number in range(10):
        queue.push(Entry("back", [number]))
    turns = [queue.take(0.0).entries[0][0].tenant for _ in range(6)]
    assert turns.count("back") == 3


def test_a_short_pause_wins_nothing() -> None:
    """One call at a time, each a large one, gets no more than its share."""
    queue = FairQueue(Packing(10))
    turns = {"large": 0, "small": 0}
    for _ in range(100):
        queue.push(Entry("small", [0]))
    queue.push(Entry("large", [0] * 10))
    for _ in range(20):
        for entry, _, block in queue.take(0.0).entries:
            turns[entry.tenant] += len(block)
            if entry.tenant == "large" and entry.complete:
                queue.push(Entry("large", [0] * 10))
    assert turns["large"] <= turns["small"] + 20


def test_a_long_queue_is_not_walked_for_every_batch() -> None:
    queue = FairQueue(Packing(8))
    for number in range(10_000):
        queue.push(Entry("one", [number], lane="even" if number % 2 else number))
    looked = len(queue.take(0.0).entries)
    assert looked == 1
    assert queue.waiting == 9_999


@given(
    st.lists(st.tuples(st.sampled_from("xyz"), st.integers(1, 50)), max_size=20), st.integers(1, 50), st.integers(1, 50)
)
def test_what_is_ahead_grows_with_the_call_and_never_counts_more_than_waits(
    waiting: list[tuple[str, int]], cost: int, more: int
) -> None:
    queue = FairQueue(Packing(8))
    for tenant, count in waiting:
        queue.push(Entry(tenant, [0] * count))
    ahead = queue.ahead_of("x", cost)
    assert ahead <= queue.ahead_of("x", cost + more) <= sum(count for _, count in waiting)
    assert ahead >= sum(min(count, 8) for tenant, count in waiting if tenant == "x")


def test_a_small_call_waits_for_one_batch_of_a_large_one_of_its_own_organization() -> None:
    queue = FairQueue(Packing(8))
    queue.push(Entry("x", [0] * 2_000))
    queue.push(Entry("y", [0] * 2_000))
    queue.announce("x", 500)
    assert queue.ahead_of("x", 1) == 8 + 8 + (8 + 8 + 1)
    queue.retract("x", 500)
    assert queue.ahead_of("x", 1) == 8 + (8 + 1)
    queue.push(Entry("x", [1]))
    begun = [queue.take(0.0) for _ in range(3)]
    assert [1] in [block for batch in begun for _, _, block in batch.entries]


seconds = st.floats(0.0, 10.0)


@given(seconds, seconds, seconds, seconds, seconds)
def test_whoever_would_wait_longer_is_never_let_in_instead(
    wait_s: float, more_s: float, own_s: float, slo_s: float, left_s: float
) -> None:
    first = retry_after_s(Outlook(wait_s, own_s), slo_s=slo_s, left_s=left_s)
    longer = retry_after_s(Outlook(wait_s + more_s, own_s), slo_s=slo_s, left_s=left_s)
    patient = retry_after_s(Outlook(wait_s, own_s), slo_s=slo_s + more_s, left_s=left_s + more_s)
    if first is not None:
        assert longer is not None
        assert longer >= first > 0
    else:
        assert patient is None


def test_a_large_call_may_wait_longer_and_a_lone_one_is_never_refused() -> None:
    assert retry_after_s(Outlook(0.0, 50.0), slo_s=0.2, left_s=10.0) is None
    assert retry_after_s(Outlook(0.5, 0.3), slo_s=0.2, left_s=10.0) is None
    assert retry_after_s(Outlook(0.5, 0.01), slo_s=0.2, left_s=10.0) is not None
    assert retry_after_s(Outlook(0.05, 0.01), slo_s=0.2, left_s=0.05) is not None


@pytest.mark.parametrize(("base_s", "slope_s"), [(0.002, 0.0005), (0.0, 0.009), (0.01, 0.0)])
def test_the_line_is_found_in_spite_of_noise_and_hiccups(base_s: float, slope_s: float) -> None:
    rng = random.Random(3)
    cost = CostModel(32)
    for number in range(300):
        size = rng.randint(1, 32)
        took_s = (base_s + slope_s * size) * rng.uniform(0.9, 1.1)
        cost.learn(size, took_s * 100 if number % 50 == 49 else took_s)
    for size in (2, 8, 32):
        assert cost.predict(size) == pytest.approx(base_s + slope_s * size, rel=0.35)


def test_a_lasting_change_is_learnt_within_some_batches() -> None:
    cost = CostModel(32)
    for _ in range(200):
        cost.learn(8, 0.01)
    for _ in range(60):
        cost.learn(8, 0.1)
    assert cost.predict(8) > 0.05


@given(st.lists(st.tuples(st.integers(1, 4096), st.floats(0.0, 60.0)), min_size=1, max_size=50), st.integers(1, 4096))
def test_no_prediction_is_negative_and_more_never_takes_less(seen: list[tuple[int, float]], cost: int) -> None:
    model = CostModel(32)
    for size, took_s in seen:
        model.learn(size, took_s)
    assert 0 <= model.predict(cost) <= model.predict(cost + 1)
    assert model.predict_backlog(cost) <= model.predict_backlog(cost + 1)
