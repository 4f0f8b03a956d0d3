"""What holds under load and when things break: queue, hang-ups, exact counts, `kill -9`, files that can't be loaded."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import struct
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from modelport.backends.llamacpp import LlamaCppBackend, LlamaCppEngine, LlamaCppOptions
from modelport.backends.protocol import Status
from modelport.calls import Call, Usage
from modelport.errors import CallTimeout, Overloaded, UpstreamFailed
from tests.contract.llamacpp_calls import (
    Answered,
    ask,
    chat,
    completion,
    engine_and_backend,
    model_file,
    until_idle,
    until_ready,
)
from tests.waiting import wait_until

pytestmark = pytest.mark.asyncio(loop_scope="module")
Pair = tuple[LlamaCppEngine, LlamaCppBackend]

# The end-of-text tokens, so that an answer goes on until its bound.
ENDLESS = {"0": -100.0, "2": -100.0}
QUEUE = 8


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def pair() -> AsyncIterator[Pair]:
    async with engine_and_backend(LlamaCppOptions(context_tokens=1024, queue=QUEUE)) as pair:
        yield pair


def endless(tokens: int, **body: object) -> Call:
    return completion("Once upon a time", max_tokens=tokens, logit_bias=ENDLESS, **body)  # type: ignore[arg-type]


async def hang_up_after(backend: LlamaCppBackend, call: Call, deltas: int) -> Usage | None:
    """Take some deltas and leave; the usage of the last one."""
    stream = backend.stream(call, model="smol", max_output_tokens=None)
    usage = None
    for _ in range(deltas):
        usage = (await anext(stream)).usage
    await stream.aclose()
    return usage


async def test_eight_streams_on_four_slots_all_end_exactly(pair: Pair) -> None:
    _, backend = pair
    answers = await asyncio.gather(*(ask(backend, endless(10 + i, seed=i), max_output_tokens=None) for i in range(8)))
    assert [answer.usage.output_tokens for answer in answers] == [10 + i for i in range(8)]
    assert all(answer.finish == "length" and answer.usage.input_tokens == 4 for answer in answers)
    await until_idle(backend)


async def test_workers_share_one_queue(pair: Pair) -> None:
    """Two workers' calls together fill the slots and the queue; one more is told when to come back."""
    engine, backend = pair
    other = LlamaCppBackend(engine.socket_path, options=LlamaCppOptions())
    await other.start()
    await until_ready(other)
    waiting = [
        asyncio.create_task(hang_up_after(worker, endless(900), 2000)) for worker in (backend, other) for _ in range(6)
    ]

    async def full() -> bool:
        stats = await backend.stats()
        return (stats.busy, stats.queued) == (4, QUEUE)

    await wait_until(full, "slots and queue are full")
    with pytest.raises(Overloaded) as caught:
        await ask(other, endless(1))
    assert caught.value.retry_after_s is not None
    assert caught.value.retry_after_s >= 1
    for task in waiting:
        task.cancel()
    await asyncio.gather(*waiting, return_exceptions=True)
    await until_idle(backend, timeout_s=10)
    await other.close()


async def test_a_deadline_is_honoured_in_the_queue(pair: Pair) -> None:
    _, backend = pair
    running = [asyncio.create_task(hang_up_after(backend, endless(900), 2000)) for _ in range(4)]

    async def full() -> bool:
        return (await backend.stats()).busy == 4

    await wait_until(full, "the slots are busy")
    # It waits in vain, or is told at once that it would.
    with pytest.raises((CallTimeout, Overloaded), match="queue"):
        await ask(backend, endless(1, timeout_s=0.3))
    for task in running:
        task.cancel()
    await asyncio.gather(*running, return_exceptions=True)
    await until_idle(backend, timeout_s=10)


async def test_hang_ups_at_random_points_are_counted_exactly(pair: Pair) -> None:
    """Each of a hundred: the usage seen last is the number of tokens received, and the engine is free afterwards."""
    _, backend = pair
    dice = random.Random(1)
    gate = asyncio.Semaphore(8)

    async def one() -> None:
        deltas = dice.randint(0, 8)
        async with gate:
            usage = await hang_up_after(backend, endless(900), deltas)
        assert (usage.output_tokens if usage else 0) == deltas
        assert usage is None or usage.input_tokens == 4

    await asyncio.gather(*(one() for _ in range(100)))
    await until_idle(backend, timeout_s=10)


async def test_a_hang_up_while_the_prompt_is_read_frees_the_slot(pair: Pair) -> None:
    _, backend = pair
    task = asyncio.create_task(ask(backend, completion("word " * 900, max_tokens=1, seed=1)))

    async def busy() -> bool:
        return (await backend.stats()).engine_busy == 1

    await wait_until(busy, "the prompt is being read")
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await until_idle(backend, timeout_s=10)


async def test_kill_9_under_load(pair: Pair) -> None:
    """Calls in flight are told what happened, never cut silently; the next call works after the restart."""
    engine, backend = pair
    tasks = [asyncio.create_task(ask(backend, endless(900), max_output_tokens=None)) for _ in range(8)]

    async def full() -> bool:
        return (await backend.stats()).busy == 4

    await wait_until(full, "the slots are busy")
    assert engine.pid is not None
    os.kill(engine.pid, signal.SIGKILL)
    for result in await asyncio.gather(*tasks, return_exceptions=True):
        assert isinstance(result, UpstreamFailed)
        assert "started again" in result.message
    await wait_until(lambda: engine.starts == 2, "a second process is started")
    await until_ready(backend)
    answer = await ask(backend, chat("Hi", max_tokens=2))
    assert isinstance(answer, Answered)
    assert engine.health().status is Status.READY


async def test_the_engine_dies_with_its_owner(tmp_path: Path) -> None:
    """Also when the owner is killed and can't say goodbye."""
    program = (
        "import asyncio, pathlib, sys\n"
        "from modelport.backends.llamacpp import LlamaCppEngine, LlamaCppOptions\n"
        "async def main():\n"
        f"    e = LlamaCppEngine(model_path=pathlib.Path({str(model_file())!r}), options=LlamaCppOptions(slots=1),\n"
        f"                       socket_path=pathlib.Path({str(tmp_path / 'e.sock')!r}))\n"
        "    await e.start()\n"
        "    while e.pid is None: await asyncio.sleep(0.01)\n"
        "    print(e.pid, flush=True)\n"
        "    await asyncio.sleep(60)\n"
        "asyncio.run(main())\n"
    )
    owner = await asyncio.create_subprocess_exec(sys.executable, "-c", program, stdout=asyncio.subprocess.PIPE)
    assert owner.stdout is not None
    pid = int(await owner.stdout.readline())
    owner.kill()
    await owner.wait()
    await wait_until(lambda: not _lives(pid), "the engine is gone")


def _lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.parametrize(
    ("content", "told"),
    [(None, "there is no model file"), (b"not a model", "no GGUF"), (b"GGUF\x03\0\0\0", "cut off"), ("half", "")],
)
async def test_a_file_that_can_not_be_loaded(tmp_path: Path, content: bytes | str | None, told: str) -> None:
    """FAILED with what is wrong, for the operator; the caller learns that much and no more; restarts are spaced out."""
    path = tmp_path / "model.gguf"
    if content == "half":
        path.write_bytes(model_file().read_bytes()[:40_000_000])
    elif isinstance(content, bytes):
        path.write_bytes(content)
    options = LlamaCppOptions(slots=1)
    engine = LlamaCppEngine(model_path=path, socket_path=tmp_path / "e.sock", options=options)
    backend = LlamaCppBackend(tmp_path / "e.sock", options=options)
    await engine.start()
    await backend.start()
    await wait_until(lambda: backend.health().status is Status.FAILED, "the failure is told", timeout_s=60)
    assert told in backend.health().detail
    assert "tried again in" in backend.health().detail
    with pytest.raises(UpstreamFailed) as caught:
        await ask(backend, chat("Hi"))
    assert str(tmp_path) not in caught.value.message
    await backend.close()
    await engine.close()
    assert engine.pid is None


async def test_too_little_memory_is_told_before_loading(tmp_path: Path) -> None:
    """A file whose header asks for more than any machine has."""
    header = b"GGUF" + struct.pack("<IQQ", 3, 0, 6)
    for name, value in (("embedding_length", 2**20), ("block_count", 2**10), ("context_length", 2**20)):
        header += _entry(f"big.{name}", value)
    header += _entry("big.attention.head_count", 1) + _entry("big.attention.head_count_kv", 64)
    header += _text("general.architecture") + struct.pack("<I", 8) + _text("big")
    path = tmp_path / "big.gguf"
    path.write_bytes(header)
    engine = LlamaCppEngine(model_path=path, socket_path=tmp_path / "e.sock", options=LlamaCppOptions())
    await engine.start()
    await wait_until(lambda: engine.health().status is Status.FAILED, "the failure is told", timeout_s=60)
    assert "context_tokens" in engine.health().detail
    await engine.close()


def _text(text: str) -> bytes:
    return struct.pack("<Q", len(text)) + text.encode()


def _entry(name: str, value: int) -> bytes:
    return _text(name) + struct.pack("<II", 4, value)
