"""What only the SQLite file can do wrong: locks, growth, long paths, a file from before the machine was started."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator
from contextlib import closing
from pathlib import Path

import pytest

from modelport.errors import StateUnavailable
from modelport.kit.clock import ManualClock
from modelport.state.memory import MemoryState
from modelport.state.protocol import Bucket, State
from modelport.state.sqlite import SqliteState

_RATE = Bucket("org:rpm", "rpm", 10, 60, 1)
_CALLS = Bucket("org:calls", "calls", 3, 0, 1)


@pytest.fixture
async def state(tmp_path: Path) -> AsyncIterator[SqliteState]:
    state = SqliteState(tmp_path / "state.db", ManualClock())
    await state.start()
    yield state
    await state.close()


async def test_a_lock_that_others_keep_lets_the_loop_go_on_and_then_refuses(
    state: SqliteState, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = await state.take("c", [_CALLS])
    with closing(sqlite3.connect(tmp_path / "state.db", isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        waiting = asyncio.create_task(state.take("c", [_RATE]))
        for _ in range(200):
            await asyncio.sleep(0)
        assert not waiting.done()
        other.execute("ROLLBACK")
        assert (await waiting).levels[0].remaining == 9
        monkeypatch.setattr("modelport.state.sqlite.BUSY_LIMIT_S", 0.05)
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(StateUnavailable):
            await state.take("c", [_RATE])
        with pytest.raises(StateUnavailable):
            await state.settle(held, [1])
        other.execute("ROLLBACK")
    assert (await state.take("c", [_RATE, _CALLS])).levels[1].remaining == 2, "the failed release is made up for"


async def test_expired_buckets_are_forgotten(state: SqliteState, tmp_path: Path) -> None:
    clock = state._clock
    assert isinstance(clock, ManualClock)
    for number in range(3_000):
        await state.take("c", [Bucket(f"org{number}", "rpm", 10, 60, 1)])
        clock.advance(1.0)
    with closing(sqlite3.connect(tmp_path / "state.db")) as other:
        assert other.execute("SELECT count(*) FROM rates").fetchone()[0] < 400


async def test_memory_forgets_expired_buckets_and_values_too() -> None:
    clock = ManualClock()
    state = MemoryState(clock)
    for number in range(3_000):
        await state.take("c", [Bucket(f"org{number}", "rpm", 10, 60, 1)])
        await state.set(f"k{number % 7}", b"x", ttl_s=30)
        await state.set(f"once{number}", b"x", ttl_s=30)
        clock.advance(1.0)
    assert len(state._rates[60]._windows) < 100
    assert len(state._values._values) < 100
    assert len(state._values._expiries) < 200


async def test_messages_are_not_kept_for_long(state: SqliteState, tmp_path: Path) -> None:
    clock = state._clock
    assert isinstance(clock, ManualClock)
    for number in range(500):
        await state.publish(f"c{number % 5}", b"x")
        clock.advance(1.0)
    with closing(sqlite3.connect(tmp_path / "state.db")) as other:
        assert other.execute("SELECT count(*) FROM messages").fetchone()[0] < 150


async def test_a_reader_that_missed_a_message_is_told_so(state: SqliteState, tmp_path: Path) -> None:
    async with state.subscribe("c") as subscription:
        with closing(sqlite3.connect(tmp_path / "state.db", isolation_level=None)) as other:
            other.execute("INSERT INTO pruned VALUES ('c', 1000)")
        await state.publish("c", b"x")
        assert [message async for message in subscription] == []
        assert not subscription.alive


async def test_a_long_path_is_no_hindrance(tmp_path: Path) -> None:
    state: State = SqliteState(tmp_path / ("d" * 120) / ("e" * 60) / "state.db", ManualClock())
    await state.start()
    async with state.subscribe("c") as subscription:
        await state.publish("c", b"x")
        async for message in subscription:
            assert message == b"x"
            break
    await state.close()


async def test_a_file_from_before_the_machine_started_is_begun_anew(tmp_path: Path) -> None:
    (tmp_path / "state.db").write_bytes(b"half written when the power went" * 1_000)
    (tmp_path / "state.db.lock").write_text("another boot")
    state = SqliteState(tmp_path / "state.db", ManualClock())
    await state.start()
    assert (await state.take("c", [_RATE])).allowed
    await state.close()
    await state.start()
    assert (await state.take("c", [_RATE])).levels[0].remaining == 8, "kept across a restart of the process"
    await state.close()


async def test_a_file_that_can_not_be_opened_says_so(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(StateUnavailable):
        await SqliteState(tmp_path / "file" / "state.db", ManualClock()).start()
