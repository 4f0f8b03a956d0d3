"""Brings the registry's versions to this machine: looks what was added or removed, and tells what the files were."""

from __future__ import annotations

import asyncio
from pathlib import Path

import structlog

from modelport.backends.protocol import Status
from modelport.catalog import store
from modelport.catalog.configured import all_models
from modelport.catalog.handover import Place
from modelport.catalog.overlay import overlay
from modelport.catalog.registered import Registered
from modelport.catalog.sources import sha256_of
from modelport.db.engine import Database, open_database
from modelport.settings import Settings
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
        self._room.adopt(placed_versions(overlay(self._base, self._registered)), keep=added)
        for place in list(self._room.placed()):
            if place.status is Status.READY and self._lacks_facts(place):
                await self._record(place)

    def _lacks_facts(self, place: Place) -> bool:
        row = self._registered.version(place.model, place.version)
        return row is not None and (row.sha256 is None or row.size_bytes is None)

    async def _record(self, place: Place) -> None:
        path = Path(place.path)
        sha256, size_bytes = await asyncio.to_thread(lambda: (sha256_of(path), path.stat().st_size))
        async with self._db.begin() as conn:
            await store.raise_revision(conn)
            await store.record_file(
                conn, model=place.model, version=place.version, sha256=sha256, size_bytes=size_bytes
            )
