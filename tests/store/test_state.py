"""What every state promises, asked of all three: memory, a SQLite file, Redis."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from modelport.errors import StateUnavailable
from modelport.kit.clock import ManualClock
from modelport.state.protocol import HOLD_RETRY_S, MAX_MESSAGE_BYTES, Bucket, State, Subscription, Taken
from modelport.state.windows import Window, changes, sub_window_us, take_all
from tests.store.states import KINDS, two_states
from tests.waiting import wait_until


@dataclass
class World:
    """A started state, its clock, and a second opening of the same state (in memory there is none but the first)."""

    state: State
    other: State
    clock: ManualClock
    kind: str

    async def pass_ttl(self, gone: Callable[[], object]) -> None:
        """Let short times to live run out, on the clock that this state goes by."""
        self.clock.advance(10.0)
        await wait_until(gone, "what has expired is gone")  # type: ignore[arg-type]


@pytest.fixture(params=KINDS)
async def world(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[World]:
    clock, kind = ManualClock(), str(request.param)
    states = two_states(kind, clock, request, tmp_path)
    async with AsyncExitStack() as stack:
        for state in states:
            await state.start()
            stack.push_async_callback(state.close)
        yield World(states[0], states[1], clock, kind)


def _rpm(limit: int, amount: int = 1, key: str = "org:rpm") -> Bucket:
    return Bucket(key, "rpm", limit, 60, amount)


def _calls(limit: int, amount: int = 1, key: str = "org:calls") -> Bucket:
    return Bucket(key, "calls", limit, 0, amount)


class TestRates:
    async def test_exactly_the_limit_passes_whoever_asks(self, world: World) -> None:
        answers = [await state.take("c", [_rpm(10)]) for _ in range(10) for state in (world.state, world.other)]
        assert [taken.allowed for taken in answers] == [True] * 10 + [False] * 10
        assert [taken.levels[0].remaining for taken in answers] == [*range(9, -1, -1), *[0] * 10]

    async def test_many_at_once_take_exactly_the_limit(self, world: World) -> None:
        answers = await asyncio.gather(*(world.state.take(str(n), [_rpm(100), _calls(1_000)]) for n in range(300)))
        assert sum(taken.allowed for taken in answers) == 100

    async def test_all_or_nothing_over_many_buckets(self, world: World) -> None:
        buckets = [_rpm(5, key=f"k{n}") for n in range(6)]
        full = [*buckets, _rpm(1, 2, key="full"), _calls(3)]
        refused = await world.state.take("c", full)
        assert (refused.allowed, refused.refused) == (False, 6)
        assert [level.remaining for level in refused.levels] == [5] * 6 + [1, 3]
        taken = await world.state.take("c", [*buckets, _calls(3)])
        assert taken.allowed
        assert [level.remaining for level in taken.levels] == [4] * 6 + [2]

    async def test_the_first_bucket_without_room_is_named(self, world: World) -> None:
        await world.state.take("c", [_rpm(1, key="b"), _rpm(1, key="c")])
        refused = await world.state.take("c", [_rpm(9, key="a"), _rpm(1, key="b"), _rpm(1, key="c")])
        assert refused.refused == 1

    async def test_after_retry_after_it_passes_and_not_before(self, world: World) -> None:
        for amount in (3, 4, 3):
            assert (await world.state.take("c", [_rpm(10, amount)])).allowed
            world.clock.advance(7.3)
        refused = await world.state.take("c", [_rpm(10, 6)])
        assert refused.retry_after_s is not None
        world.clock.advance(refused.retry_after_s - 0.000_001)
        assert not (await world.state.take("c", [_rpm(10, 6)])).allowed
        world.clock.advance(0.000_001)
        assert (await world.state.take("c", [_rpm(10, 6)])).allowed

    async def test_retry_after_is_the_longest_of_the_refused_buckets(self, world: World) -> None:
        hour = Bucket("org:rph", "rph", 1, 3_600, 1)
        await world.state.take("c", [_rpm(1), hour])
        refused = await world.state.take("c", [_rpm(1), hour])
        assert refused.retry_after_s is not None
        assert 3_600 <= refused.retry_after_s <= 3_660

    async def test_what_is_larger_than_the_limit_never_fits(self, world: World) -> None:
        refused = await world.state.take("c", [_rpm(10, 11)])
        assert (refused.allowed, refused.retry_after_s) == (False, None)
        assert (await world.state.take("c", [_rpm(0)])).retry_after_s is None

    async def test_all_is_free_again_after_reset(self, world: World) -> None:
        await world.state.take("c", [_rpm(10, 4)])
        world.clock.advance(12.5)
        taken = await world.state.take("c", [_rpm(10, 3)])
        world.clock.advance(taken.levels[0].reset_s - 0.000_001)
        assert (await world.state.peek([_rpm(10)]))[0].remaining == 7
        world.clock.advance(0.000_001)
        level = (await world.state.peek([_rpm(10)]))[0]
        assert (level.remaining, level.reset_s) == (10, 0.0)

    async def test_peek_takes_nothing(self, world: World) -> None:
        await world.state.take("c", [_rpm(10, 4), _calls(3)])
        for _ in range(3):
            levels = await world.other.peek([_rpm(10, 9), _calls(3, 9), _rpm(5, key="new")])
            assert [level.remaining for level in levels] == [6, 2, 5]
            assert levels[1].reset_s == HOLD_RETRY_S

    async def test_a_limit_that_changes_counts_what_was_taken_before(self, world: World) -> None:
        await world.state.take("c", [_rpm(10, 8)])
        assert not (await world.state.take("c", [_rpm(5)])).allowed
        assert (await world.state.take("c", [_rpm(20, 12)])).allowed

    async def test_large_amounts_stay_exact(self, world: World) -> None:
        limit = 5_000_000_000_123
        assert (await world.state.take("c", [_rpm(limit, 4_999_999_999_999)])).levels[0].remaining == 124
        assert not (await world.state.take("c", [_rpm(limit, 125)])).allowed
        assert (await world.state.take("c", [_rpm(limit, 124)])).levels[0].remaining == 0

    async def test_a_clock_set_back_neither_forgets_nor_locks_out_for_long(self, world: World) -> None:
        await world.state.take("c", [_rpm(10, 10)])
        for back_s in (30.0, 86_400.0):
            world.clock.advance(-back_s)
            refused = await world.state.take("c", [_rpm(10)])
            assert not refused.allowed
            assert refused.retry_after_s is not None
            assert refused.retry_after_s <= 122
        world.clock.advance(86_491.0)
        assert (await world.state.take("c", [_rpm(10, 10)])).allowed

    async def test_nonsense_is_refused(self, world: World) -> None:
        with pytest.raises(ValueError):
            await world.state.take("c", [_rpm(10, -1)])
        with pytest.raises(ValueError):
            await world.state.take("c", [_rpm(10), _rpm(10)])


class TestSettle:
    async def test_down_gives_room_back_at_once_and_for_good(self, world: World) -> None:
        taken = await world.state.take("c", [_rpm(10), Bucket("t", "tpm", 1_000, 60, 900)])
        world.clock.advance(5.0)
        await world.state.settle(taken, [1, 100])
        assert [level.remaining for level in await world.other.peek([_rpm(10), Bucket("t", "tpm", 1_000, 60, 0)])] == [
            9,
            900,
        ]
        world.clock.advance(57.0)
        assert (await world.state.peek([_rpm(10)]))[0].remaining == 10

    async def test_up_counts_the_work_that_was_done(self, world: World) -> None:
        taken = await world.state.take("c", [_rpm(10, 8)])
        await world.state.settle(taken, [25])
        refused = await world.state.take("c", [_rpm(10, 0)])
        assert (refused.allowed, refused.levels[0].remaining) == (False, 0)
        assert refused.retry_after_s is not None
        world.clock.advance(refused.retry_after_s)
        assert (await world.state.take("c", [_rpm(10, 10)])).allowed

    async def test_twice_changes_nothing(self, world: World) -> None:
        other = await world.state.take("o", [_rpm(10, 3), _calls(5)])
        taken = await world.state.take("c", [_rpm(10, 5), _calls(5)])
        for _ in range(2):
            await world.state.settle(taken, [1, 1])
            assert [level.remaining for level in await world.state.peek([_rpm(10), _calls(5)])] == [6, 4]
        await world.state.settle(other, [3, 1])

    async def test_after_the_window_changes_nothing(self, world: World) -> None:
        taken = await world.state.take("c", [_rpm(10, 5)])
        world.clock.advance(61.0)
        assert (await world.state.take("d", [_rpm(10, 2)])).allowed
        await world.state.settle(taken, [0])
        assert (await world.state.peek([_rpm(10)]))[0].remaining == 8
        world.clock.advance(7_200.0)
        await world.state.settle(await world.state.take("e", [_rpm(10, 5)]), [9])
        assert (await world.state.peek([_rpm(10)]))[0].remaining == 1

    async def test_a_refusal_has_nothing_to_settle(self, world: World) -> None:
        await world.state.take("c", [_rpm(1), _calls(1)])
        refused = await world.state.take("d", [_rpm(1), _calls(1)])
        await world.state.settle(refused, [0, 0])
        assert [level.remaining for level in await world.state.peek([_rpm(1), _calls(1)])] == [0, 0]

    async def test_corrects_the_sub_window_it_was_taken_in(self, world: World) -> None:
        early = await world.state.take("a", [_rpm(10, 5)])
        world.clock.advance(30.0)
        await world.state.take("b", [_rpm(10, 5)])
        await world.state.settle(early, [1])
        world.clock.advance(31.0)
        assert (await world.state.peek([_rpm(10)]))[0].remaining == 5

    async def test_takes_one_amount_for_each_bucket(self, world: World) -> None:
        taken = await world.state.take("c", [_rpm(10)])
        for amounts in ([], [1, 1], [-1]):
            with pytest.raises(ValueError):
                await world.state.settle(taken, amounts)


class TestHolds:
    async def test_no_more_than_the_limit_at_one_time(self, world: World) -> None:
        taken = [await world.state.take(str(n), [_calls(3)]) for n in range(3)]
        refused = await world.other.take("d", [_calls(3)])
        assert (refused.allowed, refused.retry_after_s) == (False, HOLD_RETRY_S)
        await world.state.settle(taken[1], [1])
        assert (await world.other.take("d", [_calls(3)])).allowed
        assert not (await world.state.take("e", [_calls(3)])).allowed

    async def test_one_taker_may_hold_twice(self, world: World) -> None:
        taken = [await world.state.take("same", [_calls(2)]) for _ in range(2)]
        assert not (await world.state.take("same", [_calls(2)])).allowed
        for one in taken:
            await world.state.settle(one, [1])
        assert (await world.state.peek([_calls(2)]))[0].remaining == 2

    async def test_closing_gives_holds_back(self, world: World) -> None:
        if world.kind == "memory":
            return
        await world.other.take("c", [_calls(1)])
        assert not (await world.state.take("d", [_calls(1)])).allowed
        await world.other.close()
        assert (await world.state.take("d", [_calls(1)])).allowed

    async def test_a_take_that_was_cancelled_holds_nothing(self, world: World) -> None:
        takes = [asyncio.create_task(world.state.take(str(n), [_rpm(100), _calls(100)])) for n in range(20)]
        for turn in range(6):
            await asyncio.sleep(0)
            for take in takes[turn::6]:
                take.cancel()
        results = await asyncio.gather(*takes, return_exceptions=True)
        kept = [taken for taken in results if isinstance(taken, Taken)]
        await world.state.ping()
        await world.state.ping()
        levels = await world.other.peek([_rpm(100), _calls(100)])
        assert [level.remaining for level in levels] == [100 - len(kept)] * 2


class TestFences:
    async def test_every_take_after_a_raise_sees_another_value(self, world: World) -> None:
        before = (await world.state.take("c", [_rpm(99)], fence="keys")).fence
        assert (await world.other.take("c", [_rpm(99)], fence="keys")).fence == before
        raised = await world.other.raise_fence("keys")
        assert raised > before
        assert (await world.state.take("c", [_rpm(99)], fence="keys")).fence == raised
        assert await world.state.raise_fence("keys") > raised

    async def test_a_refusal_shows_the_fence_too(self, world: World) -> None:
        raised = await world.state.raise_fence("keys")
        refused = await world.state.take("c", [_rpm(0)], fence="keys")
        assert (refused.allowed, refused.fence) == (False, raised)

    async def test_fences_are_apart_and_none_is_zero(self, world: World) -> None:
        raised = await world.state.raise_fence("a")
        world.clock.advance(1.0)
        assert (await world.state.take("c", [], fence="b")).fence != raised
        assert (await world.state.take("c", [])).fence == 0


class TestValues:
    async def test_get_gives_what_was_set_until_it_expires(self, world: World) -> None:
        assert await world.state.get("k") is None
        await world.state.set("k", b"\x00\xffold", ttl_s=60)
        await world.other.set("k", b"\x00\xffnew", ttl_s=0.2)
        assert await world.state.get("k") == b"\x00\xffnew"

        async def gone() -> bool:
            return await world.state.get("k") is None

        await world.pass_ttl(gone)

    async def test_add_stores_once_until_it_expires(self, world: World) -> None:
        assert await world.state.add("k", b"first", ttl_s=0.2)
        assert not await world.other.add("k", b"second", ttl_s=60)

        async def added() -> bool:
            return await world.other.add("k", b"third", ttl_s=60)

        await world.pass_ttl(added)
        assert await world.state.get("k") == b"third"

    async def test_of_many_that_add_at_once_one_wins(self, world: World) -> None:
        stored = await asyncio.gather(
            *(state.add("k", b"x", ttl_s=60) for _ in range(20) for state in (world.state, world.other))
        )
        assert sum(stored) == 1

    async def test_deleted_is_gone(self, world: World) -> None:
        await world.state.set("k", b"x", ttl_s=60)
        await world.other.delete("k")
        assert await world.state.get("k") is None
        assert await world.state.add("k", b"y", ttl_s=60)


class TestLeases:
    async def test_one_owner_at_a_time(self, world: World) -> None:
        assert await world.state.lease("leader", "a", ttl_s=60)
        assert not await world.other.lease("leader", "b", ttl_s=60)
        assert await world.state.lease("leader", "a", ttl_s=60)
        await world.other.release("leader", "b")
        assert not await world.other.lease("leader", "b", ttl_s=60)
        await world.state.release("leader", "a")
        assert await world.other.lease("leader", "b", ttl_s=60)

    async def test_a_lease_that_is_not_renewed_is_free(self, world: World) -> None:
        assert await world.state.lease("leader", "a", ttl_s=0.2)

        async def taken_over() -> bool:
            return await world.other.lease("leader", "b", ttl_s=60)

        await world.pass_ttl(taken_over)
        assert not await world.state.lease("leader", "a", ttl_s=60)

    async def test_leases_and_values_of_one_name_are_apart(self, world: World) -> None:
        await world.state.lease("k", "a", ttl_s=60)
        assert await world.state.get("k") is None


class TestChannels:
    async def test_messages_come_in_order_to_every_subscription(self, world: World) -> None:
        async with world.state.subscribe("c") as one, world.other.subscribe("c") as two:
            sent = [bytes([number]) for number in range(100)]
            for message in sent:
                await world.other.publish("c", message)
            assert await _collect(one, 100) == sent
            assert await _collect(two, 100) == sent
            assert one.alive
            assert two.alive

    async def test_channels_are_apart_and_nothing_from_before_comes(self, world: World) -> None:
        await world.state.publish("c", b"before")
        async with world.other.subscribe("c") as mine, world.other.subscribe("d"):
            await world.state.publish("d", b"other")
            await world.state.publish("c", b"mine")
            assert await _collect(mine, 1) == [b"mine"]

    async def test_the_largest_message_passes_and_a_larger_is_refused(self, world: World) -> None:
        async with world.other.subscribe("c") as subscription:
            for _ in range(20):
                await world.state.publish("c", b"x" * MAX_MESSAGE_BYTES)
            assert {len(message) for message in await _collect(subscription, 20)} == {MAX_MESSAGE_BYTES}
            with pytest.raises(ValueError):
                await world.state.publish("c", b"x" * (MAX_MESSAGE_BYTES + 1))

    async def test_closing_ends_subscriptions(self, world: World) -> None:
        async with world.state.subscribe("c") as subscription:
            reader = asyncio.create_task(_collect(subscription, 1))
            await asyncio.sleep(0)
            await world.state.close()
            assert not subscription.alive
            assert await reader == []

    async def test_a_reader_that_is_far_behind_is_told_that_it_missed_something(self, world: World) -> None:
        async with world.state.subscribe("c") as subscription:
            for _ in range(1_100):
                await world.other.publish("c", b"x")
            await wait_until(lambda: not subscription.alive, "the subscription is lost")

    async def test_one_of_two_subscriptions_may_leave(self, world: World) -> None:
        async with world.state.subscribe("c") as stays:
            async with world.state.subscribe("c") as leaves:
                pass
            assert not leaves.alive
            await world.other.publish("c", b"x")
            assert await _collect(stays, 1) == [b"x"]


async def test_a_closed_state_lets_nothing_through(world: World) -> None:
    await world.state.ping()
    await world.state.close()
    with pytest.raises(StateUnavailable):
        await world.state.take("c", [_rpm(10)])
    with pytest.raises(StateUnavailable):
        await world.state.ping()


_steps = st.lists(
    st.one_of(
        st.tuples(st.just("take"), st.integers(0, 12)),
        st.tuples(st.just("settle"), st.integers(0, 100), st.integers(0, 15)),
        st.tuples(st.just("wait"), st.one_of(st.integers(0, 3_000_000), st.integers(0, 90_000_000))),
    ),
    max_size=40,
)
_keys = itertools.count()


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=_steps, limit=st.integers(1, 30), window_s=st.sampled_from([1, 7, 60]))
async def test_every_state_keeps_the_same_rule(
    world: World, steps: list[tuple[str, ...]], limit: int, window_s: int
) -> None:
    """Random takes, settlements and waits are answered as the pure arithmetic answers them, to the microsecond."""
    key = f"property{next(_keys)}"
    model = Window(window_s, world.clock.now_us())
    pairs: list[tuple[Taken, Taken]] = []
    for step in steps:
        if step[0] == "wait":
            world.clock.advance(int(step[1]) / 1_000_000)
        elif step[0] == "settle" and pairs:
            expected, taken = pairs[int(step[1]) % len(pairs)]
            await world.state.settle(taken, [int(step[2])])
            for _, mark, change in changes(expected, [int(step[2])]):
                model.correct(mark, change)
        elif step[0] == "take":
            bucket = Bucket(key, "rpm", limit, window_s, int(step[1]))
            model.advance(world.clock.now_us())
            expected = take_all("c", [bucket], [model], now_us=world.clock.now_us(), fence=0)
            taken = await world.state.take("c", [bucket])
            assert (taken.refused, taken.retry_after_s) == (expected.refused, expected.retry_after_s)
            assert taken.levels[0].remaining == expected.levels[0].remaining
            assert taken.levels[0].reset_s == pytest.approx(expected.levels[0].reset_s, abs=1e-6)
            pairs.append((expected, taken))
    assert sub_window_us(window_s) == model.sub_us


async def _collect(subscription: Subscription, count: int) -> list[bytes]:
    """The next `count` messages, or fewer when the subscription ends before."""
    found: list[bytes] = []
    async for message in subscription:
        found.append(message)
        if len(found) == count:
            break
    return found
