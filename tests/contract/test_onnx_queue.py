"""The queue in front of a local model: bounded, batching by itself, and computing nothing that nobody waits for."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from modelport.backends.onnx.batching import Batcher
from modelport.backends.onnx.runner import Prepared
from modelport.calls import Call, Delta, Usage
from modelport.errors import Internal, Overloaded, Unavailable
from modelport.kit.clock import SystemClock
from tests.contract.local_models import answer, predict, serving
from tests.waiting import wait_until

SETOSA = [5.1, 3.5, 1.4, 0.2]


class Gate:
    """A runner that waits at a gate before each batch and notes what it was given."""

    max_batch = 4

    def __init__(self) -> None:
        self.open = threading.Event()
        self.batches: list[list[Any]] = []

    def is_light(self, call: Call) -> bool:
        return True

    def prepare(self, call: Call) -> Prepared:
        return Prepared(call.request.inputs, Usage())

    def joins(self, batch: Sequence[Any], row: Any) -> bool:
        return bool(batch[0][0] == row[0])

    def run(self, rows: Sequence[Any]) -> Sequence[Any]:
        self.batches.append(list(rows))
        assert self.open.wait(30)
        if "broken" in rows[0]:
            raise Internal("The model failed on this input.")
        return [row.upper() for row in rows]

    def render(self, call: Call, prepared: Prepared, results: Sequence[Any]) -> Delta:
        return Delta(whole=True, value=list(results), usage=prepared.usage)

    def info(self) -> dict[str, Any]:
        return {}


class Rig:
    """A gate with a batcher in front."""

    def __init__(self) -> None:
        self.gate = Gate()
        self.threads = ThreadPoolExecutor(1)
        self.batcher = Batcher(self.gate, self.threads, SystemClock())

    def submit(self, *rows: str) -> asyncio.Task[Delta]:
        call = predict(*rows)
        return asyncio.create_task(self.batcher.submit(call, self.gate.prepare(call)))

    async def busy(self) -> asyncio.Task[Delta]:
        """Start one call and return when it is being computed."""
        task = self.submit("a0")
        await wait_until(lambda: bool(self.gate.batches), "the first call is being computed")
        return task


@pytest.fixture
def rig() -> Any:
    rig = Rig()
    yield rig
    rig.gate.open.set()
    rig.threads.shutdown()


async def test_a_batch_grows_with_the_backlog_and_everybody_gets_their_own(rig: Rig) -> None:
    first = await rig.busy()
    rest = [rig.submit(f"a{number}") for number in range(1, 6)]
    await asyncio.sleep(0)
    rig.gate.open.set()
    values = [(await task).value for task in (first, *rest)]
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
    assert (await large).value == [f"A{number}" for number in range(10)]


async def test_what_was_given_up_is_never_computed(rig: Rig) -> None:
    first = await rig.busy()
    gone, kept = rig.submit("a1"), rig.submit("a2")
    await asyncio.sleep(0)
    gone.cancel()
    await asyncio.gather(gone, return_exceptions=True)
    rig.gate.open.set()
    await asyncio.gather(first, kept)
    assert rig.gate.batches == [["a0"], ["a2"]]


async def test_a_failure_reaches_its_batch_and_nobody_else(rig: Rig) -> None:
    rig.gate.open.set()
    broken, good = rig.submit("broken", *["bad"] * 9), rig.submit("a1")
    with pytest.raises(Internal):
        await broken
    assert (await good).value == ["A1"]
    assert sum(map(len, rig.gate.batches)) == 5


async def test_closing_refuses_what_waits(rig: Rig) -> None:
    first, waiting = await rig.busy(), rig.submit("a1")
    await asyncio.sleep(0)
    rig.batcher.close()
    with pytest.raises(Unavailable):
        await waiting
    rig.gate.open.set()
    assert (await first).value == ["A0"]
    with pytest.raises(Unavailable):
        await rig.submit("a2")


async def test_a_full_queue_says_so_and_when_to_come_back() -> None:
    async with serving("iris", queue=2) as backend:
        calls = [asyncio.create_task(answer(backend, predict(SETOSA))) for _ in range(5)]
        results = await asyncio.gather(*calls, return_exceptions=True)
        refused = [result for result in results if isinstance(result, Overloaded)]
        assert len(refused) == 3
        assert all(error.retry_after_s and error.retry_after_s > 0 for error in refused)
        # The places are free again.
        assert (await answer(backend, predict(SETOSA))).value[0]["label"] == "setosa"


async def test_a_hang_up_frees_its_place() -> None:
    async with serving("iris", queue=1) as backend:
        for _ in range(20):
            call = asyncio.create_task(answer(backend, predict(SETOSA)))
            await asyncio.sleep(0)
            call.cancel()
            await asyncio.gather(call, return_exceptions=True)
        assert (await answer(backend, predict(SETOSA))).value[0]["label"] == "setosa"


async def test_the_event_loop_runs_on_while_a_model_computes() -> None:
    async with serving("all-minilm-l6-v2") as backend:
        from tests.contract.local_models import embed

        call = asyncio.create_task(answer(backend, embed(["word " * 250] * 16)))
        turns = 0
        while not call.done():
            await asyncio.sleep(0)
            turns += 1
        await call
    assert turns > 100
