"""The experiments that run, in every process's memory: read for each call, told of each change."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from contextlib import suppress

import structlog

from modelport.calls import Call
from modelport.db.engine import Database
from modelport.errors import StateUnavailable
from modelport.experiments import store
from modelport.experiments.assignment import choose, unit_of
from modelport.experiments.model import Experiment, Variant
from modelport.state.protocol import State

CHANNEL = "experiments"
_RESUBSCRIBE_S = 0.5
_log = structlog.get_logger("modelport.experiments")


class ExperimentBook:
    """One per process. `running` has for each model the experiments of organizations, and under "" everyone's."""

    def __init__(self, db: Database, state: State, *, poll_interval_s: float) -> None:
        self._db = db
        self._state = state
        self._poll_interval_s = poll_interval_s
        self._news = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        self._listeners: list[Callable[[], None]] = []
        self._reading = asyncio.Lock()
        self.running: Mapping[str, Mapping[str, Experiment]] = {}

    async def start(self) -> None:
        """Read them, and keep reading. Raises: Unavailable."""
        await self.reload()
        self._tasks = [asyncio.create_task(self._follow()), asyncio.create_task(self._listen())]

    async def close(self) -> None:
        """Stop reading. Idempotent."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._tasks = []

    def on_change(self, listener: Callable[[], None]) -> None:
        """Have `listener` called when other experiments run than before, at once."""
        self._listeners.append(listener)

    async def reload(self) -> None:
        """Take over what the database says. Raises: Unavailable, with everything as it was."""
        async with self._reading:
            async with self._db.connect() as conn:
                found = await store.list_running(conn)
            running: dict[str, dict[str, Experiment]] = {}
            for one in found:
                running.setdefault(one.model, {})["" if one.audience == "everyone" else one.organization_id] = one
            if running != self.running:
                self.running = running
                for listener in self._listeners:
                    listener()

    def assign(self, call: Call) -> tuple[Experiment, Variant] | None:
        """The variant of a call that asks for a model by its bare name; an organization's own experiment goes first."""
        of_model = self.running.get(call.model)
        if of_model is None or call.caller.mode != "live":
            return None
        experiment = of_model.get(call.caller.organization_id) or of_model.get("")
        if experiment is None:
            return None
        return experiment, choose(experiment.id, unit_of(experiment, call), experiment.variants)

    async def announce(self) -> None:
        """Take a change over here, and tell the others. A message that is lost only costs time."""
        await self.reload()
        with suppress(StateUnavailable):
            await self._state.publish(CHANNEL, b"")

    async def _follow(self) -> None:
        failing = False
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(self._poll_interval_s):
                    await self._news.wait()
            self._news.clear()
            try:
                await self.reload()
                failing = False
            except Exception as error:  # noqa: BLE001  The worker loop: what runs goes on until the next time.
                if not failing:
                    _log.warning("experiments_not_read", reason=f"{error!r:.300}")
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
