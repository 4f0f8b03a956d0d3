"""What the supervisor hands to its workers: the settings, and where each model version is.

Both lie as files in `run/` below the data directory (mode 0600, written whole or not at all). The supervisor writes
`models.json` again whenever a model has moved on, such as a download that ended, and workers look at it when they
need it: a stat costs about a microsecond, so nothing has to be pushed.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import msgspec

from modelport.backends.protocol import Status
from modelport.settings import Settings

RUN_DIRECTORY = "run"
_SETTINGS_FILE = "settings.json"
_PLACES_FILE = "models.json"


@dataclass(frozen=True, slots=True)
class Place:
    """One version of one local model, as the supervisor knows it now.

    `path` is the model's file once it lies on this machine; `socket` the UNIX socket of the engine that serves it,
    for the engines that are processes of their own. `detail` says why it isn't ready, for people; of a download that is
    under way the bytes say how far it is (a total of 0 is not known).
    """

    model: str
    version: str
    status: Status
    path: str = ""
    socket: str = ""
    detail: str = ""
    done_bytes: int = 0
    total_bytes: int = 0


class Places:
    """The workers' view of `models.json`; each look is as fresh as the file."""

    __slots__ = ("_path", "_places", "_seen")

    def __init__(self, run_dir: Path) -> None:
        self._path = run_dir / _PLACES_FILE
        self._seen: tuple[int, int] = (0, 0)
        self._places: Mapping[tuple[str, str], Place] = {}

    def all(self) -> Mapping[tuple[str, str], Place]:
        """Every place by (model, version). The same object as before while the file has not changed."""
        try:
            stat = self._path.stat()
        except FileNotFoundError:
            return self._places
        # A file that was replaced has another inode, even within one tick of the file system's clock.
        seen = (stat.st_mtime_ns, stat.st_ino)
        if seen != self._seen:
            rows = msgspec.json.decode(self._path.read_bytes(), type=list[Place])
            self._places = {(row.model, row.version): row for row in rows}
            self._seen = seen
        return self._places

    def find(self, model: str, version: str) -> Place | None:
        """The place of one version, or None where the supervisor does not know it."""
        return self.all().get((model, version))


@dataclass(frozen=True, slots=True)
class Seat:
    """All that a worker gets from the supervisor beside the settings.

    The worker calls `ready` once it accepts connections on `socket` (listening already, shared by all workers).
    When `stop` is set it drains: ready turns 503, calls in flight end, and then it returns. A `successor` takes the
    place of one that could answer: it accepts connections when it can too.
    """

    index: int
    socket: socket.socket
    places: Places
    stop: asyncio.Event
    ready: Callable[[], None]
    successor: bool = False


def write_places(run_dir: Path, places: Iterable[Place]) -> None:
    """Replace `models.json` by these places."""
    _write(run_dir / _PLACES_FILE, msgspec.json.encode(list(places)))


def write_settings(run_dir: Path, settings: Settings) -> None:
    """Replace the settings that workers started from now on will read."""
    _write(run_dir / _SETTINGS_FILE, settings.model_dump_json().encode())


def read_settings(run_dir: Path) -> Settings:
    """The settings as the supervisor wrote them; they hold every value, so the environment adds nothing.

    Raises: FileNotFoundError when no supervisor has written any.
    """
    return Settings.model_validate_json((run_dir / _SETTINGS_FILE).read_bytes())


def _write(path: Path, content: bytes) -> None:
    partial = path.with_name(path.name + ".partial")
    partial.unlink(missing_ok=True)
    with os.fdopen(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(content)
    partial.replace(path)
