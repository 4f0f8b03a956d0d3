"""The file that `SqliteState` keeps its tables in."""

from __future__ import annotations

import fcntl
import sqlite3
from pathlib import Path

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_SCHEMA = """
CREATE TABLE IF NOT EXISTS rates (
    key TEXT PRIMARY KEY, newest INTEGER NOT NULL, total INTEGER NOT NULL, amounts BLOB NOT NULL,
    expires_us INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS owners (owner TEXT PRIMARY KEY, expires_us INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS holds (
    key TEXT NOT NULL, owner TEXT NOT NULL, count INTEGER NOT NULL, PRIMARY KEY (key, owner)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS purses (
    key TEXT PRIMARY KEY, spent INTEGER NOT NULL, expires_us INTEGER NOT NULL) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS purses_by_expiry ON purses (expires_us);
CREATE TABLE IF NOT EXISTS fences (name TEXT PRIMARY KEY, value INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS vals (key TEXT PRIMARY KEY, value BLOB NOT NULL, expires_us INTEGER NOT NULL) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS vals_by_expiry ON vals (expires_us);
CREATE TABLE IF NOT EXISTS messages (
    seq INTEGER PRIMARY KEY AUTOINCREMENT, channel TEXT NOT NULL, body BLOB NOT NULL, created_us INTEGER NOT NULL);
CREATE INDEX IF NOT EXISTS messages_by_channel ON messages (channel, seq);
CREATE TABLE IF NOT EXISTS pruned (channel TEXT PRIMARY KEY, seq INTEGER NOT NULL) WITHOUT ROWID;
"""


def open_file(path: Path) -> sqlite3.Connection:
    """A connection to the state's file with its tables, in autocommit, that never waits for a lock.

    Nothing is ever forced to the disk, since a killed process loses nothing by that and the machine's own crash only
    what is worthless after it: a file from before the machine was started is deleted here.
    Raises: OSError, sqlite3.Error.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.with_name(path.name + ".lock").open("a+") as lock:
        # Processes that start together make the file one after the other.
        fcntl.flock(lock, fcntl.LOCK_EX)
        lock.seek(0)
        booted = _BOOT_ID.read_text() if _BOOT_ID.exists() else ""
        if lock.read() != booted:
            for suffix in ("", "-wal", "-shm"):
                path.with_name(path.name + suffix).unlink(missing_ok=True)
            lock.truncate(0)
            lock.write(booted)
        file = sqlite3.connect(path, timeout=5.0, isolation_level=None)
        # A row of a rate has 600 bytes, which smaller pages would cut in two (measured: 33 µs a take against 44).
        file.execute("PRAGMA page_size = 4096")
        file.execute("PRAGMA journal_mode = WAL")
        file.execute("PRAGMA synchronous = OFF")
        file.executescript(_SCHEMA)
        file.execute("PRAGMA busy_timeout = 0")
    path.chmod(0o600)
    return file
