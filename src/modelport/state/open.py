"""Which state a URL of the settings stands for."""

from __future__ import annotations

from pathlib import Path

from modelport.kit.clock import Clock
from modelport.state.memory import MemoryState
from modelport.state.protocol import State
from modelport.state.redis import RedisState
from modelport.state.sqlite import SqliteState


def open_state(url: str, *, data_dir: Path, workers: int, namespace: str, clock: Clock) -> State:
    """The state of the settings, to be started with `start`.

    `auto` is the memory of a lone worker and a file for several. Raises: ValueError that says what is possible.
    """
    kind = ("memory" if workers == 1 else "sqlite") if url == "auto" else url
    if kind == "memory":
        if workers > 1:
            raise ValueError("state.url = memory can't be shared by several workers: use auto, sqlite or redis://…")
        return MemoryState(clock)
    if kind == "sqlite":
        return SqliteState(data_dir / "state.db", clock)
    if kind.startswith(("redis://", "rediss://")):
        return RedisState(kind, namespace=namespace)
    raise ValueError("state.url is one of auto, memory, sqlite, redis://… or rediss://…")
