"""Two openings of one shared state, as two processes would have it; in memory there is none but the first."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest

from modelport.kit.clock import Clock
from modelport.state.memory import MemoryState
from modelport.state.protocol import State
from modelport.state.redis import RedisState
from modelport.state.sqlite import SqliteState

KINDS = ("memory", "sqlite", "redis")
_namespaces = (f"conformance{number}" for number in itertools.count())


def two_states(kind: str, clock: Clock, request: pytest.FixtureRequest, tmp_path: Path) -> list[State]:
    """Not started. `kind` is one of KINDS."""
    if kind == "memory":
        return [MemoryState(clock)] * 2
    if kind == "sqlite":
        return [SqliteState(tmp_path / "state.db", clock) for _ in range(2)]
    url, namespace = request.getfixturevalue("redis_url"), next(_namespaces)
    return [RedisState(url, namespace=namespace, clock=clock) for _ in range(2)]
