"""Service levels of the whole installation: each worker adds its counts, any worker can tell what they come to."""

from __future__ import annotations

import asyncio
import os
import secrets
from collections.abc import Mapping

import structlog

from modelport.db.engine import Database
from modelport.errors import Unavailable
from modelport.kit.clock import Clock
from modelport.observe.counts import CountKey
from modelport.observe.metrics import Metrics
from modelport.settings import ModelSloSettings, SloSettings
from modelport.slo import store
from modelport.slo.model import HOUR_S, MINUTE_S, WINDOWS, Level, Promise, Tally, Window
from modelport.slo.rules import promises, slot_of
from modelport.state.protocol import State

# Counts that wait for a database that is away; later ones are dropped, and said to be.
MAX_WAITING = 50_000
ALARM_INTERVAL_S = 60.0
PRUNE_INTERVAL_S = 300.0
_ALARM_KEY = "slo:alarm"
_KEPT_MINUTES_S = 2 * HOUR_S
_KEPT_HOURS_S = max(window.seconds for window in WINDOWS) + 2 * HOUR_S
_SECOND_US = 1_000_000

log = structlog.get_logger("modelport.slo")


class ServiceLevels:
    """One per process. Concurrency: any number of tasks of one event loop.

    A count that the database did not confirm is added again, so an outage may count a few calls twice; no bill hangs
    on them.
    """

    def __init__(
        self,
        db: Database,
        state: State,
        *,
        metrics: Metrics,
        clock: Clock,
        settings: SloSettings,
        of_models: Mapping[str, ModelSloSettings],
    ) -> None:
        self._db = db
        self._state = state
        # Of all workers of all instances, one writes the lines about promises that burn.
        self._owner = f"{os.getpid()}-{secrets.token_hex(8)}"
        self._metrics = metrics
        self._clock = clock
        self._settings = settings
        self._of_models = of_models
        self._waiting: dict[tuple[int, CountKey], int] = {}
        self._dropped = 0
        self._began = False
        self._adding = asyncio.Lock()
        self._burning: frozenset[tuple[str | None, str | None, str]] = frozenset()
        self._alarm_due_s = self._prune_due_s = 0.0
        self._tending: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Begin to add this process's counts to the table."""
        self._metrics.keep_counts()
        self._tending = asyncio.create_task(self._tend(), name="slo")

    async def close(self) -> None:
        """Add what was counted last. Idempotent."""
        if self._tending is None:
            return
        self._tending.cancel()
        await asyncio.gather(self._tending, return_exceptions=True)
        self._tending = None
        try:
            await self._state.release(_ALARM_KEY, self._owner)
            await self._add(up=False)
        except Unavailable as error:
            log.warning("slo_counts_lost", internal=error.internal)

    async def windows(self, windows: tuple[Window, ...] = WINDOWS) -> Mapping[Window, Tally]:
        """What was counted, this process's last calls included; others' up to `interval_s` ago.

        Raises: Unavailable without the database.
        """
        await self._add(up=True)
        now_us = self._clock.now_us()
        async with self._db.connect() as conn:
            return {window: await store.read_window(conn, window, now_us=now_us) for window in windows}

    async def report(self) -> list[Promise]:
        """Every promise, with its level in every window. Raises: Unavailable."""
        return self.promises(await self.windows())

    def promises(self, tallies: Mapping[Window, Tally]) -> list[Promise]:
        """Every promise, with its level in these windows."""
        return promises(tallies, self._settings, self._of_models)

    async def _tend(self) -> None:
        while True:
            try:
                await self._add(up=True)
                await self._now_and_then()
            except Unavailable as error:
                log.warning("slo_counts_wait", internal=error.internal, waiting=len(self._waiting))
            except Exception:
                # What the database refuses is dropped, or it would be refused for ever.
                log.exception("slo_failed")
            await asyncio.sleep(self._settings.interval_s)

    async def _now_and_then(self) -> None:
        now_s = self._clock.monotonic_s()
        if now_s >= self._alarm_due_s:
            self._alarm_due_s = now_s + ALARM_INTERVAL_S
            found = await self.report()
            self._alarm(found, tell=await self._state.lease(_ALARM_KEY, self._owner, ttl_s=2 * ALARM_INTERVAL_S))
        if now_s >= self._prune_due_s:
            self._prune_due_s = now_s + PRUNE_INTERVAL_S
            await self._prune()

    async def _add(self, *, up: bool) -> None:
        """Add what was counted since the last time. Raises: Unavailable; then it waits for the next. Other errors of
        the database, with the counts dropped."""
        async with self._adding:
            now_us = self._clock.now_us()
            self._take(slot_of(now_us, MINUTE_S))
            taken, self._waiting = self._waiting, {}
            try:
                async with self._db.begin() as conn:
                    await store.add_counts(conn, counts=taken)
                    if up and not self._began:
                        await store.ensure_began(conn, now_us=now_us)
                    if up:
                        await store.mark_up(conn, now_us=now_us)
            except (Unavailable, asyncio.CancelledError):
                self._waiting = taken
                raise
            self._began |= up

    def _take(self, minute_us: int) -> None:
        for key, calls in self._metrics.take_counts().items():
            place = (minute_us, key)
            if place not in self._waiting and len(self._waiting) >= MAX_WAITING:
                self._dropped += calls
                continue
            self._waiting[place] = self._waiting.get(place, 0) + calls
        if self._dropped:
            log.warning("slo_counts_dropped", calls=self._dropped)
            self._dropped = 0

    async def _prune(self) -> None:
        now_us = self._clock.now_us()
        kept = ((MINUTE_S, _KEPT_MINUTES_S), (HOUR_S, _KEPT_HOURS_S))
        async with self._db.begin() as conn:
            await store.prune(conn, before_us=[(width, now_us - seconds * _SECOND_US) for width, seconds in kept])

    def _alarm(self, found: list[Promise], *, tell: bool) -> None:
        """Show the burn rates; with `tell`, write a line when a promise begins or ceases to burn."""
        burning = {}
        for promise in found:
            place = (promise.model, promise.endpoint, promise.objective.value)
            for level in promise.levels:
                self._show(promise, level)
            if promise.burning:
                burning[place] = promise
        for place, promise in burning.items():
            if tell and place not in self._burning:
                log.warning("slo_burning", **_told(place), levels=_rates(promise))
        for place in self._burning - burning.keys() if tell else ():
            log.info("slo_recovered", **_told(place))
        self._burning = frozenset(burning)

    def _show(self, promise: Promise, level: Level) -> None:
        rate = 0.0 if level.burn_rate is None else level.burn_rate
        place = (promise.model or "", promise.endpoint or "", promise.objective.value, level.window)
        self._metrics.burn_rate(place, rate)


def _told(place: tuple[str | None, str | None, str]) -> dict[str, str | None]:
    model, endpoint, objective = place
    return {"model": model, "endpoint": endpoint, "objective": objective}


def _rates(promise: Promise) -> dict[str, float]:
    return {level.window: round(level.burn_rate, 2) for level in promise.levels if level.burn_rate is not None}
