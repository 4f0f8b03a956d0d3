"""The data directory: made private, and held by one supervisor at a time."""

from __future__ import annotations

import fcntl
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from modelport.catalog.handover import RUN_DIRECTORY
from modelport.supervisor.refusal import StartRefused

_LOCK_FILE = "serve.lock"
_METRICS_DIRECTORY = "metrics"
# The workers of a supervisor that was killed hold the lock with it and die within milliseconds of it.
_LOCK_WAIT_S = 3.0
_LOCK_POLL_S = 0.05


class DataDirectory:
    """The directory with everything that is written. `lock_fd` is to be inherited by every child process.

    The lock belongs to the open file, which the children share: it is free again only when the last of them is
    gone, so a new start never meets workers of an old one.
    """

    __slots__ = ("lock_fd", "path")

    def __init__(self, path: Path, lock_fd: int) -> None:
        self.path = path
        self.lock_fd = lock_fd

    @property
    def run_dir(self) -> Path:
        """Files that mean something only while this supervisor runs."""
        return self.path / RUN_DIRECTORY

    @property
    def metrics_dir(self) -> Path:
        """Where the workers' metrics are gathered (PROMETHEUS_MULTIPROC_DIR)."""
        return self.run_dir / _METRICS_DIRECTORY


@contextmanager
def held(path: Path) -> Iterator[DataDirectory]:
    """The data directory, created with mode 0700 where it is missing, locked until the context ends.

    Raises: StartRefused when another supervisor holds it or it can't be written.
    """
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock_fd = os.open(path / _LOCK_FILE, os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as error:
        raise StartRefused(
            f"the data directory {path} can't be used: {error.strerror}. Choose another with --data-dir."
        ) from error
    try:
        _lock(lock_fd, path)
        directory = DataDirectory(path, lock_fd)
        shutil.rmtree(directory.run_dir, ignore_errors=True)
        directory.run_dir.mkdir(mode=0o700)
        directory.metrics_dir.mkdir(mode=0o700)
        yield directory
    finally:
        os.close(lock_fd)


def _lock(lock_fd: int, path: Path) -> None:
    deadline_s = time.monotonic() + _LOCK_WAIT_S
    while True:
        try:
            fcntl.flock(lock_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > deadline_s:
                raise StartRefused(_in_use(lock_fd, path)) from None
            time.sleep(_LOCK_POLL_S)
        else:
            os.ftruncate(lock_fd, 0)
            os.pwrite(lock_fd, f"{os.getpid()}\n".encode(), 0)
            return


def _in_use(lock_fd: int, path: Path) -> str:
    owner = os.pread(lock_fd, 32, 0).decode(errors="replace").strip()
    who = f" (process {owner})" if owner.isdigit() else ""
    return (
        f"another `modelport serve`{who} is using the data directory {path}. "
        "Stop it first, or give this one a directory of its own with --data-dir."
    )
