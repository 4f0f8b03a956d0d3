"""The ledger loses no call and counts none twice: with the database away, the disk full, the process gone."""

from __future__ import annotations

import asyncio
import errno
import os
from pathlib import Path

import pytest
import sqlalchemy as sa

from modelport.db.engine import Database
from modelport.db.schema import usage_events
from modelport.errors import BadRequest, Unavailable
from modelport.metering import journal as journal_module
from modelport.metering import ledger as ledger_module
from modelport.metering.framing import frame
from modelport.metering.journal import CLOSE, Journal, JournalFull
from modelport.metering.neighbours import Neighbours
from modelport.metering.recovery import Recovered, recover_orphans
from modelport.metering.store import insert_events
from tests.store.metering import call, event, ledger
from tests.waiting import wait_until


async def stored(db: Database) -> dict[str, int]:
    async with db.connect() as conn:
        query = sa.select(usage_events.c.call_id, usage_events.c.status).order_by(usage_events.c.call_id)
        return {row.call_id: row.status for row in await conn.execute(query)}


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """Where the journals lie."""
    return tmp_path / "journal"


async def recover(db: Database, directory: Path) -> Recovered:
    async def commit(events: list[object]) -> None:
        async with db.begin() as conn:
            await insert_events(conn, events)  # type: ignore[arg-type]

    return await recover_orphans(directory, commit, batch=100)  # type: ignore[arg-type]


def journal(directory: Path, *, segment_bytes: int = 1_000_000) -> Journal:
    made = Journal(directory, segment_bytes=segment_bytes)
    made.start()
    return made


def abandon(left: Journal) -> None:
    """Let go of a journal as a killed process does: nothing is tidied."""
    for segment in left._segments:
        os.close(segment.fd)
    os.close(left._lock_fd)


def names(directory: Path, suffix: str) -> list[Path]:
    return sorted(directory.glob(f"*{suffix}"))


async def test_a_closed_call_is_in_the_database_after_flush_and_its_files_go_with_the_process(
    any_database: Database, tmp_path: Path
) -> None:
    async with ledger(any_database, tmp_path) as books:
        for number in range(1_200):
            books.open(call(f"req_{number}"), model="m", version="1", backend="b")
            books.close(event(f"req_{number}"))
        await books.flush()
        assert len(await stored(any_database)) == 1_200
        assert books.pending == 0
    assert names(tmp_path / "journal", "") == []


async def test_commits_by_itself_without_being_asked(any_database: Database, tmp_path: Path) -> None:
    async with ledger(any_database, tmp_path, commit_interval_s=0.01) as books:
        books.close(event("a"))
        await wait_until(lambda: books.pending == 0, "the event is committed")
    assert await stored(any_database) == {"a": 200}


async def test_a_database_that_is_away_delays_events_and_loses_none(
    any_database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ledger_module, "MAX_QUEUED", 10)
    async with any_database.begin() as conn:
        await conn.execute(sa.text("ALTER TABLE usage_events RENAME TO usage_events_away"))
    async with ledger(any_database, tmp_path, commit_interval_s=0.01, commit_batch=7, segment_bytes=8192) as books:
        for number in range(300):
            books.open(call(f"req_{number}"), model="m", version="1", backend="b")
            books.close(event(f"req_{number}"))
            await asyncio.sleep(0)
        await wait_until(lambda: books._failing_since_s is not None, "a commit failed")
        # Memory stays bounded: what is beyond the queue is only in the journal.
        assert len(books._queue) <= 10
        assert len(names(tmp_path / "journal", ".journal")) > 5
        async with any_database.begin() as conn:
            await conn.execute(sa.text("ALTER TABLE usage_events_away RENAME TO usage_events"))
        await wait_until(lambda: books.pending == 0, "everything is committed")
        assert len(await stored(any_database)) == 300
        assert len(names(tmp_path / "journal", ".journal")) == 1


async def test_a_stop_while_the_database_is_away_leaves_the_events_to_the_next_start(
    any_database: Database, tmp_path: Path
) -> None:
    async with any_database.begin() as conn:
        await conn.execute(sa.text("ALTER TABLE usage_events RENAME TO usage_events_away"))
    async with ledger(any_database, tmp_path) as books:
        books.open(call("a"), model="m", version="1", backend="b")
        books.close(event("a"))
    async with any_database.begin() as conn:
        await conn.execute(sa.text("ALTER TABLE usage_events_away RENAME TO usage_events"))
    async with ledger(any_database, tmp_path) as books:
        await books.flush()
        assert await stored(any_database) == {"a": 200}


async def test_a_dead_process_is_brought_home_once(any_database: Database, directory: Path) -> None:
    dead = journal(directory, segment_bytes=4096)
    for number in range(50):
        dead.append_open(event(f"req_{number:02d}", status=500, error_code="process_died"))
    for number in range(0, 50, 2):
        dead.append_close(event(f"req_{number:02d}"))
    abandon(dead)
    first = await recover(any_database, directory)
    assert (first.owners, first.closed, first.died, first.damaged) == (1, 25, 25, [])
    rows = await stored(any_database)
    assert rows == {f"req_{number:02d}": 200 if number % 2 == 0 else 500 for number in range(50)}
    assert names(directory, "") == []
    assert (await recover(any_database, directory)).owners == 0


async def test_a_living_process_is_left_alone(any_database: Database, directory: Path) -> None:
    living = journal(directory)
    living.append_open(event("a"))
    assert (await recover(any_database, directory)).owners == 0
    assert await stored(any_database) == {}
    living.close()


async def test_a_call_that_ended_in_a_later_file_is_not_taken_for_dead(any_database: Database, directory: Path) -> None:
    dead = journal(directory, segment_bytes=4096)
    dead.append_open(event("long", status=500, error_code="process_died"))
    for number in range(30):
        dead.append_open(event(f"req_{number}"))
        dead.append_close(event(f"req_{number}"))
    dead.mark_committed(30)
    dead.append_close(event("long"))
    assert len(names(directory, ".journal")) > 1
    abandon(dead)
    assert (await recover(any_database, directory)).died == 0
    # The others were marked as committed, so they are not offered again.
    assert await stored(any_database) == {"long": 200}


async def test_files_are_dropped_as_soon_as_nobody_needs_them(directory: Path) -> None:
    busy = journal(directory, segment_bytes=4096)
    busy.append_open(event("long"))
    for number in range(100):
        busy.append_open(event(f"req_{number}"))
        busy.append_close(event(f"req_{number}"))
    many = len(names(directory, ".journal"))
    busy.mark_committed(busy.closes)
    # The file in which the long call began, and the one that is written now.
    assert many > 5
    assert len(names(directory, ".journal")) == 2
    busy.append_close(event("long"))
    busy.mark_committed(busy.closes)
    assert len(names(directory, ".journal")) == 1
    busy.close()
    assert names(directory, "") == []


async def test_damage_costs_what_it_touches_and_the_file_is_kept_aside(any_database: Database, directory: Path) -> None:
    dead = journal(directory)
    for number in range(9):
        dead.append_close(event(f"req_{number}"))
    abandon(dead)
    (path,) = names(directory, ".journal")
    data = bytearray(path.read_bytes())
    data[data.index(b"req_4")] ^= 0xFF
    path.write_bytes(data)
    found = await recover(any_database, directory)
    assert (found.closed, len(found.damaged)) == (8, 1)
    assert set(await stored(any_database)) == {f"req_{number}" for number in range(9)} - {"req_4"}
    assert [left.suffix for left in names(directory, "")] == [".damaged"]


async def test_a_torn_last_record_is_no_damage(any_database: Database, directory: Path) -> None:
    dead = journal(directory)
    dead.append_close(event("a"))
    segment = dead._segments[0]
    os.pwrite(segment.fd, frame(CLOSE + b"x" * 100)[:60], segment.size)
    abandon(dead)
    found = await recover(any_database, directory)
    assert (found.closed, [" torn end" in line for line in found.damaged]) == (1, [True])
    assert names(directory, ".damaged") == []


async def test_a_record_of_another_version_is_kept_aside_and_stops_nothing(
    any_database: Database, directory: Path
) -> None:
    dead = journal(directory)
    segment = dead._segments[0]
    strange = frame(CLOSE + b"12345678" + b"\x93\x01\x02\x03") + frame(CLOSE) + frame(b"?")
    os.pwrite(segment.fd, strange, 0)
    segment.size = len(strange)
    dead.append_close(event("a"))
    abandon(dead)
    assert (await recover(any_database, directory)).closed == 1
    assert len(names(directory, ".damaged")) == 1


async def test_a_full_disk_refuses_the_call_before_it_begins_and_keeps_the_room_of_those_that_run(
    any_database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with ledger(any_database, tmp_path) as books:
        for number in range(50):
            books.open(call(f"req_{number}"), model="m", version="1", backend="b")

        def full(_fd: int, _offset: int, _length: int) -> None:
            raise OSError(errno.ENOSPC, "no space left on device")

        monkeypatch.setattr(os, "posix_fallocate", full)
        refused = 0
        for number in range(2_000):
            try:
                books.open(call(f"late_{number}"), model="m", version="1", backend="b")
            except Unavailable:
                refused += 1
        assert refused > 0
        segment = books._journal._segments[-1]
        ends = [f"req_{number}" for number in range(50)] + [f"late_{number}" for number in range(2_000 - refused)]
        for id in ends:
            books.close(event(id))
        # Every end found room in what was allocated when its call began.
        assert segment.size <= segment.allocated
        assert books.pending == len(ends)
        await books.flush()
        assert set(await stored(any_database)) == set(ends)


def test_a_failed_write_leaves_no_half_record_and_no_reservation(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = journal(directory)
    real = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda fd, data, offset: real(fd, data[:10], offset))
    with pytest.raises(JournalFull):
        kept.append_open(event("torn"))
    monkeypatch.undo()
    assert kept.open_calls == 0
    kept.append_close(event("a"))
    closes, rest = kept.read_closes(journal_module.Position(1, 0), most=9)
    assert ([closed.call_id for _, closed in closes], rest) == (["a"], None)
    kept.close()


async def test_an_end_that_can_not_be_written_is_committed_from_memory(
    any_database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with ledger(any_database, tmp_path, commit_interval_s=0.01) as books:
        books.open(call("a"), model="m", version="1", backend="b")

        def broken(_fd: int, _data: bytes, _offset: int) -> int:
            raise OSError(errno.EIO, "input/output error")

        monkeypatch.setattr(os, "pwrite", broken)
        books.close(event("a"))
        await asyncio.sleep(0)
        with pytest.raises(Unavailable):
            books.open(call("b"), model="m", version="1", backend="b")

        async def there() -> bool:
            return await stored(any_database) == {"a": 200}

        await wait_until(there, "the event is in the database")


async def test_one_event_that_the_database_refuses_does_not_hold_up_the_others(
    any_database: Database, tmp_path: Path
) -> None:
    async with ledger(any_database, tmp_path) as books:
        books.close(event("a"))
        books.close(event("bad", model=None))
        books.close(event("b"))
        await books.flush()
        assert set(await stored(any_database)) == {"a", "b"}
    assert b'"bad"' in (tmp_path / "journal" / "refused.jsonl").read_bytes()


async def test_numbers_and_codes_beyond_any_column_are_cut_down(any_database: Database, tmp_path: Path) -> None:
    async with ledger(any_database, tmp_path) as books:
        books.close(event("a", input_tokens=10**30, cost_nanos=10**40, error_code="x" * 100_000, status=400))
        await books.flush()
        assert await stored(any_database) == {"a": 400}


async def test_metadata_too_long_for_a_record_refuses_the_call(any_database: Database, tmp_path: Path) -> None:
    async with ledger(any_database, tmp_path) as books:
        with pytest.raises(BadRequest, match="metadata"):
            books.open(call("a", metadata={"feature": "x" * 50_000}), model="m", version="1", backend="b")


async def test_a_report_waits_for_what_a_dead_process_left(
    any_database: Database, tmp_path: Path, directory: Path
) -> None:
    dead = journal(directory)
    dead.append_close(event("a"))
    abandon(dead)
    async with ledger(any_database, tmp_path) as books:
        await books.flush()
        assert await stored(any_database) == {"a": 200}


@pytest.mark.parametrize("fsync", ["never", "interval", "always"])
async def test_every_way_to_sync_commits(any_database: Database, tmp_path: Path, fsync: str) -> None:
    async with ledger(any_database, tmp_path, fsync=fsync) as books:
        books.open(call("a"), model="m", version="1", backend="b")
        books.close(event("a"))
        await books.flush()
        assert await stored(any_database) == {"a": 200}


async def test_a_report_holds_what_a_neighbour_closed_just_before(any_database: Database, tmp_path: Path) -> None:
    slow: dict[str, object] = {"commit_interval_s": 600.0}
    async with ledger(any_database, tmp_path, **slow) as here, ledger(any_database, tmp_path, **slow) as there:
        for number in range(3):
            there.open(call(f"req_{number}"), model="m", version="1", backend="b")
            there.close(event(f"req_{number}"))
            # A record is in the file before anything else that the loop does, an answer's bytes included.
            await asyncio.sleep(0)
            await here.flush()
            assert len(await stored(any_database)) == number + 1
        # What is committed already is not read twice.
        await there.flush()
        assert here._neighbours.read_new(own=here._journal.owner) == []


async def test_committed_calls_of_a_neighbour_are_not_offered_again(any_database: Database, directory: Path) -> None:
    living = journal(directory)
    for number in range(5):
        living.append_close(event(f"req_{number}"))
    living.mark_committed(3)
    offered = Neighbours(directory).read_new(own="somebody")
    assert [one.call_id for one in offered] == ["req_3", "req_4"]
    assert Neighbours(directory).read_new(own=living.owner) == []
    living.close()
