"""Keeps one process's catalogue what the configuration and the registry say: load, warm, flip, drain, unload.

A version that was added is loaded beside the others. An alias that is to mean it goes on meaning what it meant until
the version can answer here, and for ever where it can't be loaded. A version that was removed is out of the catalogue
at once and unloaded after its last call.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

import structlog

from modelport.backends.protocol import Backend, Status
from modelport.catalog import store
from modelport.catalog.announce import CHANNEL
from modelport.catalog.model import Model, Version
from modelport.catalog.overlay import effective, overlay, wanted_aliases
from modelport.catalog.registered import Registered
from modelport.catalog.service import Catalog, version_health
from modelport.db.engine import Database
from modelport.errors import StateUnavailable
from modelport.settings import ModelSettings, RegistrySettings
from modelport.state.protocol import State

# How often it is looked whether a version that an alias waits for has come up; only while one does.
_LOOK_S = 0.05
_RESUBSCRIBE_S = 0.5
_log = structlog.get_logger("modelport.catalog")

Build = Callable[[ModelSettings, Model | None], Model]


class Follower:
    """One per process. Concurrency: the tasks of one event loop, any number of processes."""

    def __init__(
        self,
        catalog: Catalog,
        db: Database,
        state: State,
        *,
        base: Sequence[ModelSettings],
        build: Build,
        settings: RegistrySettings,
        call_timeout_s: float,
    ) -> None:
        """`base` is what the configuration offers; `build` makes a model of its row. No call lasts longer than
        `call_timeout_s`."""
        self._catalog = catalog
        self._db = db
        self._state = state
        self._base = base
        self._build = build
        self._settings = settings
        self._call_timeout_s = call_timeout_s
        self._registered = Registered()
        self._wanted: dict[str, dict[str, tuple[str, ...]]] = {}
        # Versions that could answer at some time.
        self._came: set[tuple[str, str]] = set()
        self._news = asyncio.Event()
        self._lock = asyncio.Lock()
        self._tasks: list[asyncio.Task[None]] = []
        self._retiring: dict[asyncio.Task[None], Backend] = {}

    @property
    def registered(self) -> Registered:
        """The registry as this process has it."""
        return self._registered

    async def start(self) -> None:
        """Fill the catalogue and begin to follow. Raises: Unavailable; ValueError for an alias that leads nowhere."""
        async with self._db.connect() as conn:
            registered = await store.read_all(conn)
        await self._lay(registered)
        self._tasks = [asyncio.create_task(self._follow()), asyncio.create_task(self._listen())]

    async def close(self) -> None:
        """Stop following, and close what was to be unloaded. Idempotent."""
        tasks, retiring = [*self._tasks, *self._retiring], list(self._retiring.values())
        self._tasks, self._retiring = [], {}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for backend in retiring:
            await backend.close()

    async def catch_up(self) -> None:
        """Return when the catalogue has every change that is committed by now. Raises: Unavailable."""
        async with self._lock:
            async with self._db.connect() as conn:
                if await store.read_revision(conn) == self._registered.revision:
                    return
                registered = await store.read_all(conn)
            await self._lay(registered)

    def flip(self) -> None:
        """Let aliases lead to the versions that they wait for and that can answer by now."""
        models = [self._led(model) for model in self._catalog.models.values()]
        if any(new is not old for new, old in zip(models, self._catalog.models.values(), strict=True)):
            self._catalog.swap(models)

    async def _lay(self, registered: Registered) -> None:
        before = self._catalog.models
        had = {id(backend): backend for backend in self._catalog.backends()}
        rows = overlay(self._base, registered)
        self._wanted = {row.id: wanted_aliases(row, registered) for row in rows}
        models = [self._led(self._build(row, before.get(row.id)), before.get(row.id)) for row in rows]
        has = {id(backend): backend for backend in Catalog(models).backends()}
        for key in has.keys() - had.keys():
            await has[key].start()
        self._registered = registered
        self._came &= {(model.id, version) for model in models for version in model.versions}
        self._catalog.swap(models)
        for key in had.keys() - has.keys():
            self._retire(had[key])

    def _led(self, model: Model, before: Model | None = None) -> Model:
        """The model with its aliases where they lead now; itself where that is where they led."""
        wanted = self._wanted[model.id]
        led = model.aliases if before is None else before.aliases

        aliases = {
            alias: effective(
                means,
                led.get(alias) if led.get(alias) in model.versions else None,
                ready=lambda version: self._is_ready(model, version),
                failed=lambda version: self._never_came(model, version),
            )
            for alias, means in wanted.items()
        }
        pending = {alias: means[0] for alias, means in wanted.items() if aliases[alias] != means[0]}
        if aliases == model.aliases and pending == model.pending:
            return model
        for alias, version in aliases.items():
            if led.get(alias, version) != version:
                _log.info("alias_flipped", model=model.id, alias=alias, version=version)
        return replace(model, aliases=aliases, pending=pending)

    def _is_ready(self, model: Model, version: str) -> bool:
        ready = version_health(model.versions[version]).status is Status.READY
        if ready:
            self._came.add((model.id, version))
        return ready

    def _never_came(self, model: Model, version: str) -> bool:
        """Whether it could not be loaded. One that answered once is waited for, whatever has become of it."""
        failed = version_health(model.versions[version]).status is Status.FAILED
        return failed and (model.id, version) not in self._came

    def _retire(self, backend: Backend) -> None:
        retire = getattr(backend, "retire", None)
        work: Coroutine[Any, Any, None]
        if retire is None:
            work = backend.close()
        else:
            work = retire(drain_s=self._settings.drain_s, most_s=self._settings.drain_s + self._call_timeout_s)
        task = asyncio.create_task(work)
        self._retiring[task] = backend
        task.add_done_callback(lambda done: self._retiring.pop(done, None))

    def _waiting(self) -> bool:
        """Whether an alias may lead elsewhere without any further change."""
        if any(model.pending for model in self._catalog.models.values()):
            return True
        return any(
            len(means) > 1 and self._state_of(model, means[0]) is Status.LOADING
            for model, aliases in self._wanted.items()
            for means in aliases.values()
        )

    def _state_of(self, model: str, version: str) -> Status:
        found: Version = self._catalog.models[model].versions[version]
        return version_health(found).status

    async def _follow(self) -> None:
        failing, loop = False, asyncio.get_running_loop()
        due_s = loop.time() + self._settings.poll_interval_s
        while True:
            wait_s = _LOOK_S if self._waiting() else max(due_s - loop.time(), 0)
            with suppress(TimeoutError):
                async with asyncio.timeout(wait_s):
                    await self._news.wait()
            try:
                if self._news.is_set() or loop.time() >= due_s:
                    self._news.clear()
                    due_s = loop.time() + self._settings.poll_interval_s
                    await self.catch_up()
                self.flip()
                failing = False
            except Exception as error:  # noqa: BLE001  The worker loop: the catalogue stays as it was until the next time.
                if not failing:
                    _log.warning("registry_not_followed", reason=f"{error!r:.300}")
                failing = True

    async def _listen(self) -> None:
        while True:
            with suppress(StateUnavailable):
                async with self._state.subscribe(CHANNEL) as messages:
                    # What came before this was maybe missed.
                    self._news.set()
                    async for _ in messages:
                        self._news.set()
            await asyncio.sleep(_RESUBSCRIBE_S)
