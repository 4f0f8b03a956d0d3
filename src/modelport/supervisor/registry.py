"""Brings the registry's versions to this machine: looks what was added or removed, and tells what the files were."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from pathlib import Path

import structlog

from modelport.catalog import store
from modelport.catalog.configured import all_models
from modelport.catalog.overlay import overlay
from modelport.catalog.registered import AddedVersion, Registered
from modelport.catalog.sources import SourceError, sha256_of
from modelport.db.engine import Database, open_database
from modelport.errors import Unavailable
from modelport.settings import ModelSettings, Settings, VersionSettings
from modelport.supervisor.models import ModelRoom, placed_versions

_log = structlog.get_logger("modelport.models")


class RegistryWatch:
    """One per machine. Start it when the database is migrated."""

    def __init__(self, settings: Settings, room: ModelRoom) -> None:
        self._base = all_models(settings)
        self._room = room
        self._interval_s = settings.registry.poll_interval_s
        self._db: Database = open_database(settings.database.url, data_dir=settings.data_dir, pool_size=1)
        self._registered = Registered()
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Bring what is registered, and keep looking. A database that is away is tried again."""
        self._task = asyncio.create_task(self._look_forever())

    async def close(self) -> None:
        """Stop looking. Idempotent."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        await self._db.close()

    async def _look_forever(self) -> None:
        failing = False
        while True:
            try:
                await self._look()
                failing = False
            except Exception as error:  # noqa: BLE001  The supervisor's loop: what is served stays until the next look.
                if not failing:
                    _log.warning("registry_not_read", reason=f"{error!r:.300}")
                failing = True
            await asyncio.sleep(self._interval_s)

    async def _look(self) -> None:
        async with self._db.connect() as conn:
            if await store.read_revision(conn) != self._registered.revision:
                self._registered = await store.read_all(conn)
        added = {(version.model, version.version) for version in self._registered.versions}
        self._room.adopt(placed_versions(overlay(self._base, self._registered)), keep=added, vet=self._vet)

    async def _vet(self, row: ModelSettings, version: VersionSettings, path: Path) -> None:
        """Tell what a version's file is, where nobody knew; where another machine was faster and got another one, this
        one is not served. Raises: SourceError."""
        known = self._registered.version(row.id, version.version)
        if known is None or (version.sha256 is not None and known.size_bytes is not None):
            return
        sha256, size_bytes = await asyncio.to_thread(lambda: (sha256_of(path), path.stat().st_size))
        first = await self._record(known, sha256, size_bytes)
        if first != sha256:
            raise SourceError(f"its file has the SHA-256 {sha256} here, and {first} where it was fetched first")

    async def _record(self, version: AddedVersion, sha256: str, size_bytes: int) -> str | None:
        """The hash that is recorded: this one, or that of whoever came first. A database that is away is waited for."""
        model, name = version.model, version.version
        while True:
            with suppress(Unavailable):
                async with self._db.begin() as conn:
                    await store.raise_revision(conn)
                    await store.record_file(conn, model=model, version=name, sha256=sha256, size_bytes=size_bytes)
                    found = (await store.read_all(conn)).version(model, name)
                return None if found is None else found.sha256
            await asyncio.sleep(self._interval_s)
