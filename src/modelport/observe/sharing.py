"""Metrics of several workers in one directory. Imports no prometheus-client, which reads the environment on import."""

from __future__ import annotations

import os
from pathlib import Path


def prepare_directory(directory: Path) -> None:
    """Make the workers share their values in `directory`, without those of an earlier run.

    Called once by the supervisor, before any worker starts and before anything imports `observe.metrics`.
    """
    directory.mkdir(parents=True, exist_ok=True)
    for stale in directory.glob("*.db"):
        stale.unlink(missing_ok=True)
    os.environ["PROMETHEUS_MULTIPROC_DIR"] = str(directory)


def forget_process(pid: int) -> None:
    """A worker is gone: its gauges no longer count. Its counters do."""
    from prometheus_client import multiprocess

    multiprocess.mark_process_dead(pid)  # type: ignore[no-untyped-call]
