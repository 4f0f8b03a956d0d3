"""The composition root: the one place where the parts of a gateway worker are put together."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import structlog
import uvicorn

from modelport.access.keyring import KeyRing
from modelport.access.service import KeyService
from modelport.api.app import build_app
from modelport.api.connection import connection_class
from modelport.api.platform import Platform
from modelport.backends.openai import OpenAIBackend
from modelport.backends.protocol import Backend
from modelport.backends.sandbox import SandboxBackend
from modelport.calls import ModelKind
from modelport.catalog.configured import all_models
from modelport.catalog.handover import Place, Places, Seat
from modelport.catalog.model import Model, Target, Version
from modelport.catalog.placed import PlacedBackend
from modelport.catalog.rules import aliases_of
from modelport.catalog.service import Catalog
from modelport.db.engine import open_database
from modelport.inference.admission import Admission
from modelport.inference.corridor import Corridor
from modelport.kit.clock import SystemClock
from modelport.kit.ids import IdSource
from modelport.limits.service import Limiter
from modelport.metering.ledger import Ledger
from modelport.metering.prices import PriceBook
from modelport.metering.service import UsageService
from modelport.observe import logs
from modelport.observe.metrics import process_metrics
from modelport.settings import ModelSettings, Settings, UpstreamSettings, VersionSettings
from modelport.state.open import open_state

# Containers made beyond those freed before the youngest are looked through, and how many such looks make an older one.
_GC_YOUNG = 50_000
_GC_OLDER = (10, 50)

log = structlog.get_logger("modelport")


async def serve_worker(settings: Settings, seat: Seat) -> None:
    """Serve on the seat's socket until its `stop` is set, then drain and return."""
    logs.configure(settings.log)
    async with open_platform(settings, seat.places) as platform:
        config = uvicorn.Config(
            build_app(platform),
            http=connection_class(settings.server, platform.ids),
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            timeout_keep_alive=round(settings.server.keep_alive_s),
            timeout_graceful_shutdown=round(settings.server.drain_s),
        )
        server = _Server(config, seat, platform)
        await server.serve(sockets=[seat.socket])


class _Server(uvicorn.Server):
    """uvicorn without signals of its own: the seat says when it stops, and is told when it listens."""

    def __init__(self, config: uvicorn.Config, seat: Seat, platform: Platform) -> None:
        super().__init__(config)
        self._seat = seat
        self._platform = platform

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    async def main_loop(self) -> None:
        """Instead of uvicorn's own, which wakes ten times a second: sleep until told to stop."""
        _calm_garbage_collector()
        # The loop keeps a weak set of every asynchronous generator, to close those that are left when it ends. Ours are
        # closed by whoever runs them, and keeping the set takes 3 % of a call. A forgotten one is still finalized.
        sys.set_asyncgen_hooks(firstiter=None)
        self._seat.ready()
        watching = asyncio.create_task(self._platform.metrics.observe_forever())
        await self._seat.stop.wait()
        watching.cancel()
        self._platform.phase.draining = True
        self.should_exit = True


def _calm_garbage_collector() -> None:
    """Leave what start-up made out of every later collection, and collect less often.

    A call makes some hundred short-lived containers. With Python's own thresholds the whole heap (the libraries'
    modules and schemas) was walked so often that it took over a third of a call's processor time.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(_GC_YOUNG, *_GC_OLDER)


@asynccontextmanager
async def open_platform(settings: Settings, places: Places) -> AsyncIterator[Platform]:
    """Every service of one process, started; closed in reverse order, so that what is metered reaches the database."""
    clock = SystemClock()
    ids = IdSource(clock)
    metrics = process_metrics()
    async with AsyncExitStack() as stack:
        # The last thing that is done: calls may end until then.
        stack.callback(metrics.hand_over)
        db = open_database(settings.database.url, data_dir=settings.data_dir, pool_size=settings.database.pool_size)
        stack.push_async_callback(db.close)
        state = open_state(
            settings.state.url,
            data_dir=settings.data_dir,
            workers=settings.server.workers,
            namespace=settings.state.namespace,
            clock=clock,
        )
        await state.start()
        stack.push_async_callback(state.close)
        keyring = KeyRing(db, state, clock=clock, settings=settings.access)
        await keyring.start()
        stack.push_async_callback(keyring.close)
        prices = PriceBook(db, clock=clock)
        await prices.start(all_models(settings), settings.upstreams)
        stack.push_async_callback(prices.close)
        ledger = Ledger(db, clock=clock, settings=settings.metering, directory=settings.data_dir / "journal")
        await ledger.start()
        stack.push_async_callback(ledger.close_all)
        limiter = Limiter(state, management_per_minute=settings.limits.management_per_minute)
        admission = Admission(keyring, limiter)
        sandbox = SandboxBackend()
        catalog = Catalog(_models(settings, places, now_us=clock.now_us()))
        await catalog.start()
        stack.push_async_callback(catalog.close)
        corridor = Corridor(
            catalog=catalog,
            admission=admission,
            ledger=ledger,
            prices=prices,
            metrics=metrics,
            clock=clock,
            limits=settings.limits,
            sandbox=Target(sandbox, "sandbox"),
            call_timeout_s=settings.server.call_timeout_s,
        )
        yield Platform(
            settings=settings,
            clock=clock,
            ids=ids,
            db=db,
            state=state,
            keyring=keyring,
            keys=KeyService(db, state, clock=clock, ids=ids),
            limiter=limiter,
            admission=admission,
            catalog=catalog,
            corridor=corridor,
            ledger=ledger,
            prices=prices,
            usage=UsageService(db, ledger),
            metrics=metrics,
        )


def _models(settings: Settings, places: Places, *, now_us: int) -> list[Model]:
    upstreams = {row.name: _upstream(row) for row in settings.upstreams}
    return [_model(row, upstreams, places, now_us=now_us) for row in all_models(settings)]


def _model(row: ModelSettings, upstreams: dict[str, Backend], places: Places, *, now_us: int) -> Model:
    if row.targets:
        targets = tuple(Target(upstreams[t.upstream], t.model or row.id, t.upstream, t.weight) for t in row.targets)
        versions = {"1": Version("1", targets)}
    else:
        versions = {
            version.version: Version(
                version.version, (Target(_local(row, version, places), row.id),), sha256=version.sha256
            )
            for version in row.all_versions()
        }
    aliases = aliases_of(list(versions), row.aliases)
    return Model(row.id, ModelKind(row.kind), row, versions, created_us=now_us, aliases=aliases)


def _upstream(row: UpstreamSettings) -> Backend:
    api_key = os.environ.get(row.api_key_env, "") if row.api_key_env else ""
    if row.api_key_env and not api_key:
        log.warning("upstream_key_missing", upstream=row.name, variable=row.api_key_env)
    return OpenAIBackend(row, api_key=api_key)


def _local(row: ModelSettings, version: VersionSettings, places: Places) -> Backend:
    if row.backend == "sandbox":
        return SandboxBackend()

    def build(place: Place) -> Backend:
        if row.backend == "llamacpp":
            from modelport.backends.llamacpp.backend import LlamaCppBackend
            from modelport.backends.llamacpp.options import LlamaCppOptions

            options = LlamaCppOptions.parse(row.options | version.options)
            return LlamaCppBackend(Path(place.socket), options=options)
        from modelport.backends.onnx import build_onnx

        return build_onnx(row, version, Path(place.path))

    return PlacedBackend(row.backend or "", model=row.id, version=version.version, places=places, build=build)
