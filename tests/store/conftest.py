"""Databases for the tests of stores: each test runs once on SQLite and once on PostgreSQL."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from modelport.db.engine import Database
from tests.store.metering import database


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest) -> str:
    """The URL of an empty database."""
    if request.param == "sqlite":
        return ""
    url: str = request.getfixturevalue("postgres_database")
    return url


@pytest.fixture
async def any_database(database_url: str, tmp_path: Path) -> AsyncIterator[Database]:
    """A migrated database of one's own."""
    async with database(database_url, tmp_path) as db:
        yield db
