"""The servers that tests share. One of each for the whole run; a fresh database for each test that asks."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator

import pytest

from tests import services

_numbers = itertools.count(1)


@pytest.fixture(scope="session")
def redis_url() -> Iterator[str]:
    """A Redis for the whole run. Tests keep apart by their namespace; none may stop it."""
    service = services.start_redis()
    yield service.url
    service.remove()


@pytest.fixture
def redis_service() -> Iterator[services.Service]:
    """A Redis of one's own, to be paused, killed and restarted."""
    service = services.start_redis()
    yield service
    service.remove()


@pytest.fixture(scope="session")
def postgres_url() -> Iterator[str]:
    """The superuser's URL of a PostgreSQL for the whole run; none may stop it."""
    service = services.start_postgres()
    yield service.url
    service.remove()


@pytest.fixture
def postgres_database(postgres_url: str) -> Iterator[str]:
    """The URL of an empty PostgreSQL database of one's own, dropped afterwards."""
    name = f"test_{os.getpid()}_{next(_numbers)}"
    yield services.create_database(postgres_url, name)
    services.drop_database(postgres_url, name)


@pytest.fixture
def postgres_service() -> Iterator[services.Service]:
    """A PostgreSQL of one's own, to be paused, killed and restarted."""
    service = services.start_postgres()
    yield service
    service.remove()
