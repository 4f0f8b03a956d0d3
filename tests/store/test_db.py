"""The door to the database: what it commits, what it refuses, and how it says that it is away."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError, IntegrityError

from modelport.db.engine import Database, open_database
from modelport.db.inserts import insert_new
from modelport.db.migrate import migrate
from modelport.db.schema import plans
from modelport.db.urls import find_place
from modelport.errors import Unavailable
from tests import services
from tests.waiting import wait_until


def plan(id_: str) -> dict[str, object]:
    return {"id": id_, "name": id_, "created_us": 0}


async def count(db: Database) -> int:
    async with db.connect() as conn:
        return int((await conn.execute(sa.select(sa.func.count()).select_from(plans))).scalar_one())


async def test_a_transaction_is_committed_whole_or_not_at_all(any_database: Database) -> None:
    async with any_database.begin() as conn:
        await conn.execute(sa.insert(plans), [plan("a"), plan("b")])
    with pytest.raises(IntegrityError):
        async with any_database.begin() as conn:
            await conn.execute(sa.insert(plans), [plan("c"), plan("a")])
    assert await count(any_database) == 2


async def test_a_reader_can_not_write(any_database: Database) -> None:
    with pytest.raises((DBAPIError, Unavailable)):
        async with any_database.connect() as conn:
            await conn.execute(sa.insert(plans).values(plan("a")))
    assert await count(any_database) == 0


async def test_a_reader_sees_one_state_of_the_data_throughout(any_database: Database) -> None:
    query = sa.select(sa.func.count()).select_from(plans)
    async with any_database.connect() as conn:
        assert (await conn.execute(query)).scalar_one() == 0
        async with any_database.begin() as other:
            await other.execute(sa.insert(plans).values(plan("a")))
        assert (await conn.execute(query)).scalar_one() == 0
    assert await count(any_database) == 1


async def test_a_writer_reads_what_others_committed_meanwhile(any_database: Database) -> None:
    """Reading transactions leave nothing of their isolation on the connections that writing ones use next."""
    async with any_database.connect() as conn:
        await conn.execute(sa.select(plans))
    async with any_database.begin() as conn:
        if any_database.dialect == "postgresql":
            assert (await conn.execute(sa.text("SHOW transaction_isolation"))).scalar() == "read committed"
        await conn.execute(sa.insert(plans).values(plan("a")))


async def test_insert_new_leaves_out_what_is_there_already(any_database: Database) -> None:
    async with any_database.begin() as conn:
        await insert_new(conn, plans, rows=[plan("a"), plan("b")])
        await insert_new(conn, plans, rows=[{**plan("b"), "name": "other"}, plan("c"), plan("c")])
        await insert_new(conn, plans, rows=[])
    async with any_database.connect() as conn:
        rows = (await conn.execute(sa.select(plans.c.id, plans.c.name).order_by(plans.c.id))).all()
    assert [tuple(row) for row in rows] == [("a", "a"), ("b", "b"), ("c", "c")]


async def test_many_writers_of_two_processes_all_get_their_turn(database_url: str, tmp_path: Path) -> None:
    """Two `Database` objects share nothing, just as two processes do."""
    first = open_database(database_url, data_dir=tmp_path, pool_size=2)
    second = open_database(database_url, data_dir=tmp_path, pool_size=2)
    await migrate(first)

    async def write(db: Database, name: str) -> None:
        async with db.begin() as conn:
            known = (await conn.execute(sa.select(sa.func.count()).select_from(plans))).scalar_one()
            await conn.execute(sa.insert(plans).values(plan(f"{name}-after-{known}")))

    both = (("first", first), ("second", second))
    await asyncio.gather(*(write(db, f"{name}-{number}") for number in range(40) for name, db in both))
    assert await count(first) == 80
    await first.close()
    await second.close()


async def test_a_writer_that_is_cancelled_gives_its_turn_back(any_database: Database) -> None:
    inside = asyncio.Event()

    async def write() -> None:
        async with any_database.begin() as conn:
            await conn.execute(sa.insert(plans).values(plan("a")))
            inside.set()
            await asyncio.Event().wait()

    task = asyncio.create_task(write())
    await inside.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    async with any_database.begin() as conn:
        await conn.execute(sa.insert(plans).values(plan("b")))
    assert await count(any_database) == 1


async def test_a_wrong_statement_is_not_called_an_outage(any_database: Database) -> None:
    with pytest.raises(DBAPIError):
        async with any_database.connect() as conn:
            await conn.execute(sa.text("SELECT nothing FROM nowhere"))


async def test_foreign_keys_hold_on_both(any_database: Database) -> None:
    statement = sa.text("INSERT INTO projects (id, organization_id, name, created_us) VALUES ('p', 'nobody', 'x', 0)")
    with pytest.raises(IntegrityError):
        async with any_database.begin() as conn:
            await conn.execute(statement)


async def test_a_server_that_is_away_is_unavailable_and_back_when_it_is(
    postgres_service: services.Service, tmp_path: Path
) -> None:
    db = open_database(postgres_service.url, data_dir=tmp_path, pool_size=2)
    await db.ping()
    postgres_service.kill()
    with pytest.raises(Unavailable) as refused:
        await db.ping()
    assert "5432" not in refused.value.message
    assert refused.value.internal

    async def answers() -> bool:
        try:
            await db.ping()
        except Unavailable:
            return False
        return True

    postgres_service.start()
    await wait_until(answers, "the database answers again")
    await db.close()


async def test_an_unknown_database_or_port_is_unavailable(postgres_url: str, tmp_path: Path) -> None:
    for url in (postgres_url + "_missing", f"postgresql://nobody@127.0.0.1:{services.free_port()}/x"):
        db = open_database(url, data_dir=tmp_path, pool_size=1)
        with pytest.raises(Unavailable):
            await db.ping()
        await db.close()


def test_an_empty_url_is_a_file_in_the_data_directory(tmp_path: Path) -> None:
    place = find_place("", data_dir=tmp_path)
    assert place.path == tmp_path / "modelport.db"
    assert place.dialect == "sqlite"
    assert find_place("sqlite:////var/lib/x.db", data_dir=tmp_path).path == Path("/var/lib/x.db")


@pytest.mark.parametrize("scheme", ["postgresql", "postgres", "postgresql+asyncpg"])
def test_the_words_of_libpq_are_translated(scheme: str, tmp_path: Path) -> None:
    url = f"{scheme}://u:p@h:1/d?sslmode=require&application_name=gw&connect_timeout=3"
    place = find_place(url, data_dir=tmp_path)
    assert place.dialect == "postgresql"
    assert place.url.drivername == "postgresql+asyncpg"
    assert place.url.query == {}
    assert place.connect_args == {"ssl": "require", "timeout": 3.0, "server_settings": {"application_name": "gw"}}


def test_certificates_are_handed_over_as_the_driver_reads_them(tmp_path: Path) -> None:
    place = find_place("postgresql://h/d?sslmode=verify-full&sslrootcert=/ca.pem", data_dir=tmp_path)
    assert place.connect_args["dsn"] == "postgresql://?sslmode=verify-full&sslrootcert=%2Fca.pem"


@pytest.mark.parametrize("url", ["mysql://h/d", "no url", "sqlite://", "sqlite:///:memory:", "postgresql://h/d?x=1"])
def test_a_url_of_another_kind_is_refused_with_what_is_possible(url: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"database\.url"):
        find_place(url, data_dir=tmp_path)


def test_no_refusal_repeats_a_password(tmp_path: Path) -> None:
    with pytest.raises(ValueError) as refused:
        find_place("mysql://u:hunter2@h/d", data_dir=tmp_path)
    assert "hunter2" not in str(refused.value)
