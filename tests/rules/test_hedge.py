"""A race of two answers: who begins first wins, the other is stopped at once, a failure leaves the other its chance."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field

import pytest

from modelport.calls import Delta
from modelport.errors import CallTimeout, ModelportError, UpstreamFailed
from modelport.inference.hedge import lead, race, within

OPENING = Delta(b"role", timed=False)


@dataclass
class Runner:
    """An answer that begins when it is told to, or fails."""

    name: bytes
    go: asyncio.Event = field(default_factory=asyncio.Event)
    error: ModelportError | None = None
    closed: bool = False

    async def stream(self) -> AsyncGenerator[Delta]:
        try:
            yield OPENING
            await self.go.wait()
            if self.error is not None:
                raise self.error
            yield Delta(self.name)
            yield Delta(b"rest")
        finally:
            self.closed = True


@pytest.fixture
def one() -> Runner:
    return Runner(b"one")


@pytest.fixture
def two() -> Runner:
    return Runner(b"two")


async def run(one: Runner, two: Runner | None, failures: list[int]) -> tuple[int, list[bytes]]:
    winner, pieces = await race(
        one.stream(),
        after_s=0.0,
        second=lambda: None if two is None else two.stream(),
        failed=lambda index, _: failures.append(index),
    )
    return winner, [piece.raw for piece in pieces]


async def test_who_begins_first_wins_and_the_other_is_stopped(one: Runner, two: Runner) -> None:
    two.go.set()
    assert await run(one, two, []) == (1, [b"role", b"two"])
    assert (one.closed, two.closed) == (True, False)


async def test_without_a_second_the_first_is_waited_for(one: Runner) -> None:
    asyncio.get_running_loop().call_soon(one.go.set)
    assert await run(one, None, []) == (0, [b"role", b"one"])


async def test_when_one_fails_the_other_goes_on(one: Runner, two: Runner) -> None:
    failures: list[int] = []
    one.error = UpstreamFailed()
    asyncio.get_running_loop().call_later(0.01, one.go.set)
    asyncio.get_running_loop().call_later(0.03, two.go.set)
    assert await run(one, two, failures) == (1, [b"role", b"two"])
    assert failures == [0]


async def test_a_first_that_fails_before_there_is_a_second_has_failed(one: Runner, two: Runner) -> None:
    """Then the next target is the answer, and not a rival."""
    one.error = UpstreamFailed()
    one.go.set()
    with pytest.raises(UpstreamFailed):
        await run(one, two, [])


async def test_when_both_fail_the_last_failure_is_told(one: Runner, two: Runner) -> None:
    failures: list[int] = []
    two.error = UpstreamFailed("second")
    two.go.set()
    one.error = UpstreamFailed("first")
    asyncio.get_running_loop().call_later(0.01, one.go.set)
    with pytest.raises(UpstreamFailed, match="first"):
        await run(one, two, failures)
    assert failures == [1]


async def test_whoever_gives_up_stops_both(one: Runner, two: Runner) -> None:
    task = asyncio.create_task(run(one, two, []))
    for _ in range(10):
        await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert (one.closed, two.closed) == (True, True)


async def test_an_answer_without_output_is_all_of_it(one: Runner) -> None:
    async def empty() -> AsyncGenerator[Delta]:
        yield OPENING

    assert await lead(empty()) == [OPENING]


@pytest.mark.parametrize("whole", [True, False])
async def test_an_answer_that_does_not_come_in_time_is_stopped(one: Runner, whole: bool) -> None:
    with pytest.raises(CallTimeout):
        async for _ in within(one.stream(), 0.01, whole=whole):
            pass
    assert one.closed


async def test_an_answer_in_time_passes_unchanged(one: Runner) -> None:
    one.go.set()
    assert [piece.raw async for piece in within(one.stream(), 5.0, whole=False)] == [b"role", b"one", b"rest"]
