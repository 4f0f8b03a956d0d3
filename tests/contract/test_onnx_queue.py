"""The queue in front of a local model: bounded, batching by itself, and computing nothing that nobody waits for."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import pytest

from modelport.backends.batching.admission import Turn
from modelport.backends.batching.batcher import Batcher, Terms
from modelport.backends.batching.work import Packing, Prepared
from modelport.calls import Delta, Usage
from modelport.errors import CallTimeout, Internal, Overloaded, Unavailable
from modelport.kit.clock import SystemClock
from tests.contract.local_models import answer, embed, predict, serving
from tests.waiting import wait_until

SETOSA = [5.1, 3.5, 1.4, 0.2]


class Gate:
    """Computes by waiting at a gate before each batch, and notes what it was given. `broken` breaks whoever has it."""

    def __init__(self) -> None:
        self.open = threading.Event()
        self.batches: list[list[str]] = []

    def run(self, blocks: Sequence[list[str]]) -> Sequence[list[str]]:
        self.batches.append([row for block in blocks for row in block])
        assert self.open.wait(30)
        if "broken" in self.batches[-1]:
            raise Internal("The model failed on this input.")
        return [[row.upper() for row in block] for block in blocks]


class Rig:
    """A gate with a batcher in front. Rows go together whose first letter is the same."""

    def __init__(self, *, slots: int = 1) -> None:
        self.gate = Gate()
        self.threads = ThreadPoolExecutor(slots)
        self.clock = SystemClock()
        self.batcher = Batcher(self.gate.run, self.threads, self.clock, terms=Terms(Packing(4), slots))

    def submit(self, *rows: str, tenant: str = "org_1", left_s: float = 60.0) -> asyncio.Task[list[str]]:
        return asyncio.create_task(self._submit(list(rows), tenant, self.clock.monotonic_s() + left_s))

    async def _submit(self, rows: list[str], tenant: str, deadline_s: float) -> list[str]:
        prepared = Prepared(rows, Usage(), lane=rows[0][0])
        turn = Turn(tenant, self.clock.monotonic_s(), 0.0, deadline_s)
        blocks = await self.batcher.submit(turn, prepared)
        return [row for block in blocks for row in block]

    async def busy(self) -> asyncio.Task[list[str]]:
        """Start one call and return when it is being computed."""
        task = self.submit("a0")
        await wait_until(lambda: bool(self.gate.batches), "the first call is being computed")
        return task


@pytest.fixture
def rig() -> Iterator[Rig]:
    rig = Rig()
    yield rig
    rig.gate.open.set()
    rig.threads.shutdown()


async def test_a_batch_grows_with_the_backlog_and_everybody_gets_their_own(rig: Rig) -> None:
    first = await rig.busy()
    rest = [rig.submit(f"a{number}") for number in range(1, 6)]
    await asyncio.sleep(0)
    rig.gate.open.set()
    values = [await task for task in (first, *rest)]
    assert values == [[f"A{number}"] for number in range(6)]
    assert rig.gate.batches == [["a0"], ["a1", "a2", "a3", "a4"], ["a5"]]


async def test_only_what_goes_together_is_batched(rig: Rig) -> None:
    first = await rig.busy()
    rest = [rig.submit(row) for row in ("a1", "b1", "a2", "b2")]
    await asyncio.sleep(0)
    rig.gate.open.set()
    await asyncio.gather(first, *rest)
    assert rig.gate.batches == [["a0"], ["a1", "a2"], ["b1", "b2"]]


async def test_a_call_with_many_rows_does_not_hold_up_the_small_ones(rig: Rig) -> None:
    first = await rig.busy()
    large, small = rig.submit(*(f"a{number}" for number in range(10))), rig.submit("b1")
    await asyncio.sleep(0)
    rig.gate.open.set()
    await asyncio.gather(first, large, small)
    assert [batch[0][0] for batch in rig.gate.batches] == ["a", "a", "b", "a", "a"]
    assert await large == [f"A{number}" for number in range(10)]


async def test_what_was_given_up_is_never_computed(rig: Rig) -> None:
    first = await rig.busy()
    gone, kept = rig.submit("a1"), rig.submit("a2")
    await asyncio.sleep(0)
    gone.cancel()
    await asyncio.gather(gone, return_exceptions=True)
    rig.gate.open.set()
    await asyncio.gather(first, kept)
    assert rig.gate.batches == [["a0"], ["a2"]]


async def test_a_failure_reaches_its_own_call_and_no_batch_mate(rig: Rig) -> None:
    first = await rig.busy()
    broken, good = rig.submit("broken", *["bad"] * 9), rig.submit("b1")
    await asyncio.sleep(0)
    rig.gate.open.set()
    with pytest.raises(Internal):
        await broken
    assert await good == ["B1"]
    await first
    # The rest of the broken call was not computed.
    assert sum(map(len, rig.gate.batches)) == 1 + 4 + 1


async def test_a_failing_batch_is_computed_anew_call_by_call(rig: Rig) -> None:
    first = await rig.busy()
    good, broken, better = rig.submit("b1"), rig.submit("broken"), rig.submit("b2")
    await asyncio.sleep(0)
    rig.gate.open.set()
    with pytest.raises(Internal):
        await broken
    assert [await good, await better] == [["B1"], ["B2"]]
    await first


async def test_who_broke_a_batch_has_no_more_company_for_a_while(rig: Rig) -> None:
    """Else one caller could have every batch of the others computed twice."""
    first = await rig.busy()
    broken, good = rig.submit("broken", tenant="mallory"), rig.submit("b1", tenant="ann")
    await asyncio.sleep(0)
    rig.gate.open.set()
    assert isinstance((await asyncio.gather(first, broken, good, return_exceptions=True))[1], Internal)
    rig.gate.open.clear()
    busy = rig.submit("b2", tenant="ann")
    await wait_until(lambda: rig.gate.batches[-1] == ["b2"], "the model is at work again")
    rest = [rig.submit(row, tenant=tenant) for row, tenant in (("b3", "mallory"), ("b4", "ann"), ("b5", "mallory"))]
    await asyncio.sleep(0)
    rig.gate.open.set()
    await asyncio.gather(busy, *rest)
    assert sorted(rig.gate.batches[-2:]) == [["b3", "b5"], ["b4"]]


async def test_what_is_past_its_deadline_is_never_computed(rig: Rig) -> None:
    first = await rig.busy()
    late, kept = rig.submit("a1", left_s=0.0), rig.submit("a2")
    await asyncio.sleep(0)
    rig.gate.open.set()
    with pytest.raises(CallTimeout):
        await late
    await asyncio.gather(first, kept)
    assert rig.gate.batches == [["a0"], ["a2"]]


async def test_a_flood_of_one_organization_holds_up_no_other(rig: Rig) -> None:
    first = await rig.busy()
    flood = [rig.submit(f"a{number}", tenant="org_flood") for number in range(20)]
    await asyncio.sleep(0)
    small = rig.submit("a99", tenant="org_small")
    await asyncio.sleep(0)
    rig.gate.open.set()
    await asyncio.gather(first, small, *flood)
    assert "a99" in rig.gate.batches[1]


async def test_slots_compute_at_one_time_and_rows_come_back_in_order() -> None:
    rig = Rig(slots=2)
    call = rig.submit(*(f"a{number}" for number in range(10)))
    await wait_until(lambda: len(rig.gate.batches) == 2, "both slots are at work")
    rig.gate.open.set()
    assert await call == [f"A{number}" for number in range(10)]
    rig.threads.shutdown()


async def test_closing_refuses_what_waits(rig: Rig) -> None:
    first, waiting = await rig.busy(), rig.submit("a1")
    await asyncio.sleep(0)
    rig.batcher.close()
    with pytest.raises(Unavailable):
        await waiting
    rig.gate.open.set()
    assert await first == ["A0"]
    with pytest.raises(Unavailable):
        await rig.submit("a2")


async def test_a_full_queue_says_so_and_when_to_come_back() -> None:
    async with serving("all-minilm-l6-v2", queue=2) as backend:
        calls = [asyncio.create_task(answer(backend, embed("word " * 200))) for _ in range(5)]
        results = await asyncio.gather(*calls, return_exceptions=True)
        refused = [result for result in results if isinstance(result, Overloaded)]
        assert len(refused) == 3
        assert all(error.retry_after_s and error.retry_after_s > 0 for error in refused)
        # The places are free again.
        assert (await answer(backend, embed("hello"))).raw


async def test_a_hang_up_frees_its_place() -> None:
    async with serving("all-minilm-l6-v2", queue=1) as backend:
        for _ in range(20):
            call = asyncio.create_task(answer(backend, embed("word " * 200)))
            await asyncio.sleep(0)
            call.cancel()
            await asyncio.gather(call, return_exceptions=True)
        assert (await answer(backend, embed("hello"))).raw


async def test_closing_a_busy_model_leaves_every_call_an_answer_or_a_reason() -> None:
    """Whatever a call is at: being tokenised, waiting, computed, or rendered. None is told that its client hung up."""
    async with serving("all-minilm-l6-v2", slo_ms=600_000) as backend:
        calls = [asyncio.create_task(answer(backend, embed(["word " * 60] * 8))) for _ in range(20)]
        await asyncio.wait(calls, return_when=asyncio.FIRST_COMPLETED)
        await backend.close()
        results = await asyncio.gather(*calls, return_exceptions=True)
    refused = [result for result in results if isinstance(result, Unavailable)]
    assert refused
    assert all(isinstance(result, Delta | Unavailable) for result in results)


async def test_who_would_be_answered_too_late_is_refused_at_once_and_counted() -> None:
    async with serving("all-minilm-l6-v2", slo_ms=20) as backend:
        calls = [asyncio.create_task(answer(backend, embed("word " * 200))) for _ in range(30)]
        results = await asyncio.gather(*calls, return_exceptions=True)
        refused = [result for result in results if isinstance(result, Overloaded)]
        told = backend.info()["batching"]
    assert 0 < len(refused) < 30
    assert told["refused"] == len(refused)
    assert told["slo_ms"] == 20
    assert told["waiting"] == 0
    assert "try again in" in refused[0].message


async def test_what_takes_no_time_is_computed_without_a_thread() -> None:
    """A thread and back would take longer than the model."""
    async with serving("iris") as backend:
        stream = backend.stream(predict(SETOSA), model="m", max_output_tokens=None)
        with pytest.raises(StopIteration) as done:
            stream.__anext__().send(None)
    assert done.value.value.value[0]["label"] == "setosa"


async def test_the_event_loop_runs_on_while_a_model_computes() -> None:
    async with serving("all-minilm-l6-v2") as backend:
        call = asyncio.create_task(answer(backend, embed(["word " * 250] * 16)))
        turns = 0
        while not call.done():
            await asyncio.sleep(0)
            turns += 1
        await call
    assert turns > 100
