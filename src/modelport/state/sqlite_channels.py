"""Messages between the processes of one host: kept in the state's file, announced through UNIX datagram sockets.

A message is a row, and its announcement an empty datagram to each subscription's socket in a folder beside the
file. A socket whose queue is full has announcements waiting, so its reader will come and find every row: nothing is
lost by that, and nobody polls. A socket that nobody listens to any more is deleted by whoever finds it.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import secrets
import socket
import sqlite3
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Protocol, TypeVar

from modelport.errors import StateUnavailable
from modelport.state.inbox import Inbox
from modelport.state.protocol import MAX_MESSAGE_BYTES, Subscription

T = TypeVar("T")

# A reader that has not come for a message in this time has missed it, and is told so.
MESSAGE_TTL_US = 60_000_000
_PRUNE_EVERY = 32
# What fits into sockaddr_un on every system.
_MAX_SOCKET_PATH = 100
_DRAIN_BYTES = 16


class Transactions(Protocol):
    """What channels need of the state whose file they share."""

    async def write(self, work: Callable[[sqlite3.Connection], T]) -> T: ...

    async def read(self, work: Callable[[sqlite3.Connection], T]) -> T: ...


class SqliteChannels:
    """Publishing and subscribing on the file of `state`."""

    def __init__(self, path: Path, state: Transactions) -> None:
        self._folder = path.with_name(path.name + ".inboxes")
        self._state = state
        self._readers: set[_Reader] = set()

    async def publish(self, channel: str, message: bytes, *, now_us: int) -> None:
        """Store the message and wake every subscription of the channel. Raises: StateUnavailable, ValueError."""
        if len(message) > MAX_MESSAGE_BYTES:
            raise ValueError(f"a message has at most {MAX_MESSAGE_BYTES} bytes")
        await self._state.write(lambda file: _store(file, channel, message, now_us))
        if not self._folder.is_dir():
            return
        prefix = _socket_prefix(channel)
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender, os.scandir(self._folder) as entries:
            sender.setblocking(False)
            for entry in entries:
                if entry.name.startswith(prefix):
                    self._announce(sender, Path(entry.path))

    def _announce(self, sender: socket.socket, path: Path) -> None:
        try:
            with _Address(path) as address:
                sender.sendto(b"!", address)
        except BlockingIOError:
            return
        except (ConnectionRefusedError, FileNotFoundError):
            path.unlink(missing_ok=True)
        except OSError as error:
            raise StateUnavailable(internal=f"{path}: {error}") from error

    @asynccontextmanager
    async def subscribe(self, inbox: Inbox) -> AsyncIterator[Subscription]:
        """`inbox`, filled from now on. Raises: StateUnavailable."""
        reader = _Reader(inbox, self._state, self._folder / (_socket_prefix(inbox.channel) + secrets.token_hex(8)))
        self._readers.add(reader)
        try:
            await reader.start()
            yield inbox
        finally:
            self._readers.discard(reader)
            reader.close()

    def close(self) -> None:
        """End every subscription."""
        for reader in self._readers:
            reader.close()
        self._readers.clear()


class _Reader:
    """One subscription: a socket that wakes it, and how far it has read."""

    def __init__(self, inbox: Inbox, state: Transactions, path: Path) -> None:
        self._inbox = inbox
        self._state = state
        self._path = path
        self._socket: socket.socket | None = None
        self._seq = 0
        self._reading: asyncio.Task[None] | None = None
        self._woken = False

    async def start(self) -> None:
        try:
            self._path.parent.mkdir(mode=0o700, exist_ok=True)
            listener = self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
            listener.setblocking(False)
            with _Address(self._path) as address:
                listener.bind(address)
        except OSError as error:
            raise StateUnavailable(internal=f"{self._path}: {error}") from error
        # The socket is there before the last message is looked up, so that none falls between.
        self._seq = await self._state.read(_last_seq)
        asyncio.get_running_loop().add_reader(listener, self._wake, listener)

    def close(self) -> None:
        self._inbox.lose()
        if self._reading is not None:
            self._reading.cancel()
        if self._socket is not None:
            asyncio.get_running_loop().remove_reader(self._socket)
            self._socket.close()
            self._socket = None
            self._path.unlink(missing_ok=True)

    def _wake(self, listener: socket.socket) -> None:
        try:
            while True:
                listener.recv(_DRAIN_BYTES)
        except BlockingIOError:
            pass
        self._woken = True
        if self._reading is None:
            self._reading = asyncio.create_task(self._read_on(), name="sqlite-state-messages")

    async def _read_on(self) -> None:
        try:
            while self._woken:
                self._woken = False
                found = await self._state.read(self._unread)
                if found is None:
                    self._inbox.lose()
                    return
                for seq, body in found:
                    self._seq = seq
                    self._inbox.push(body)
        except StateUnavailable:
            self._inbox.lose()
        finally:
            self._reading = None

    def _unread(self, file: sqlite3.Connection) -> list[tuple[int, bytes]] | None:
        """The messages after the last one read, or None when some of them are gone already."""
        channel = self._inbox.channel
        pruned = file.execute("SELECT seq FROM pruned WHERE channel = ?", (channel,)).fetchone()
        if pruned is not None and pruned[0] > self._seq:
            return None
        return file.execute(_UNREAD, (channel, self._seq)).fetchall()


class _Address:
    """A path for `bind` and `sendto`, which take only short ones: a long one goes by way of its open folder."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._folder = -1

    def __enter__(self) -> str:
        if len(os.fsencode(self._path)) <= _MAX_SOCKET_PATH:
            return str(self._path)
        self._folder = os.open(self._path.parent, os.O_RDONLY | os.O_DIRECTORY)
        return f"/proc/self/fd/{self._folder}/{self._path.name}"

    def __exit__(self, *_: object) -> None:
        if self._folder >= 0:
            os.close(self._folder)


def _socket_prefix(channel: str) -> str:
    return hashlib.sha256(channel.encode()).hexdigest()[:16] + "-"


def _last_seq(file: sqlite3.Connection) -> int:
    row = file.execute("SELECT seq FROM sqlite_sequence WHERE name = 'messages'").fetchone()
    return int(row[0]) if row is not None else 0


def _store(file: sqlite3.Connection, channel: str, message: bytes, now_us: int) -> None:
    row = (channel, message, now_us)
    seq = file.execute("INSERT INTO messages (channel, body, created_us) VALUES (?, ?, ?)", row).lastrowid or 0
    if seq % _PRUNE_EVERY == 0:
        pruned = file.execute(_PRUNE, (now_us - MESSAGE_TTL_US,)).fetchall()
        file.executemany(_NOTE_PRUNED, pruned)


_UNREAD = "SELECT seq, body FROM messages WHERE channel = ? AND seq > ? ORDER BY seq"
# Of every channel, so that one which nobody publishes to any more does not keep its last messages. Rows are in the
# order of time, and the subquery stops at the first that is young enough.
_PRUNE = """DELETE FROM messages WHERE seq < coalesce(
    (SELECT seq FROM messages WHERE created_us >= ? ORDER BY seq LIMIT 1), 0) RETURNING channel, seq"""
_NOTE_PRUNED = """INSERT INTO pruned (channel, seq) VALUES (?, ?)
    ON CONFLICT (channel) DO UPDATE SET seq = max(seq, excluded.seq)"""
