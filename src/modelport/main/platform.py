"""The services of one process, made, joined and started."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Protocol, TypeVar

from modelport.access.announce import announced
from modelport.access.keyring import KeyRing
from modelport.access.service import KeyService
from modelport.api.platform import Platform
from modelport.budgets.service import BudgetService
from modelport.budgets.telling import log_event
from modelport.budgets.treasury import Treasury
from modelport.catalog.configured import all_models
from modelport.catalog.follower import Follower
from modelport.catalog.handover import Places
from modelport.catalog.registry import Registry
from modelport.catalog.service import Catalog
from modelport.db.engine import Database, open_database
from modelport.experiments.book import ExperimentBook
from modelport.experiments.service import ExperimentService
from modelport.inference.admission import Admission
from modelport.inference.cashier import Cashier
from modelport.inference.corridor import Corridor
from modelport.inference.embedder import Embedder
from modelport.inference.routes import build_router
from modelport.inference.variants import VariantModels
from modelport.kit.clock import Clock, SystemClock
from modelport.kit.ids import IdSource
from modelport.limits.service import Limiter
from modelport.main.models import Assembly
from modelport.metering.ledger import Ledger
from modelport.metering.prices import PriceBook
from modelport.metering.service import UsageService
from modelport.observe.metrics import Metrics, process_metrics
from modelport.replay.cache.answers import AnswerStore, MemoryAnswers, SharedAnswers
from modelport.replay.cache.service import ResponseCache
from modelport.replay.cache.turns import Turns
from modelport.replay.idempotency.service import Idempotency
from modelport.settings import Settings
from modelport.slo.service import ServiceLevels
from modelport.state.open import open_state
from modelport.state.protocol import State


class _Service(Protocol):
    async def start(self) -> None: ...

    async def close(self) -> None: ...


_S = TypeVar("_S", bound=_Service)


async def _run(stack: AsyncExitStack, service: _S) -> _S:
    """Start `service`, and close it when the stack is left."""
    await service.start()
    stack.push_async_callback(service.close)
    return service


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
        state = await _run(stack, _state(settings, clock))
        keyring = await _run(stack, KeyRing(db, state, clock=clock, settings=settings.access))
        prices = await _prices(stack, settings, db, clock=clock)
        ledger = await _ledger(stack, settings, db, clock=clock)
        limiter = Limiter(state, management_per_minute=settings.limits.management_per_minute)
        treasury = await _run(stack, _treasury(db, state, ledger, clock))
        cashier = Cashier(limiter, treasury, clock=clock, settings=settings.budgets, metrics=metrics)
        admission = Admission(keyring, limiter, cashier)
        catalog, registry = await _models(stack, settings, places, db, state, clock=clock, metrics=metrics)
        router = await _run(stack, build_router(settings, catalog, state, clock=clock, metrics=metrics))
        idempotency = await _run(stack, Idempotency(db, clock=clock, settings=settings.idempotency))
        running = await _run(stack, ExperimentBook(db, state, poll_interval_s=settings.registry.poll_interval_s))
        corridor = Corridor(
            catalog=catalog,
            admission=admission,
            ledger=ledger,
            prices=prices,
            metrics=metrics,
            clock=clock,
            limits=settings.limits,
            router=router,
            cache=_cache(settings, state, Embedder(catalog, ids=ids, clock=clock), clock=clock),
            experiments=running,
            call_timeout_s=settings.server.call_timeout_s,
        )
        levels = await _run(stack, _levels(settings, db, state, clock=clock))
        stack.push_async_callback(corridor.close)
        yield Platform(
            settings=settings,
            clock=clock,
            ids=ids,
            db=db,
            state=state,
            keyring=keyring,
            keys=KeyService(db, state, clock=clock, ids=ids),
            limiter=limiter,
            budgets=_budgets(db, state, treasury, clock, ids),
            admission=admission,
            catalog=catalog,
            corridor=corridor,
            ledger=ledger,
            prices=prices,
            usage=UsageService(db, ledger),
            idempotency=idempotency,
            metrics=metrics,
            levels=levels,
            registry=registry,
            experiments=_experiments(db, running, catalog, registry, ledger, clock=clock),
        )


def _experiments(
    db: Database, running: ExperimentBook, catalog: Catalog, registry: Registry, ledger: Ledger, *, clock: Clock
) -> ExperimentService:
    return ExperimentService(db, running, VariantModels(catalog), registry, clock=clock, flush=ledger.flush)


async def _ledger(stack: AsyncExitStack, settings: Settings, db: Database, *, clock: Clock) -> Ledger:
    ledger = Ledger(db, clock=clock, settings=settings.metering, directory=settings.data_dir / "journal")
    await ledger.start()
    stack.push_async_callback(ledger.close_all)
    return ledger


async def _prices(stack: AsyncExitStack, settings: Settings, db: Database, *, clock: Clock) -> PriceBook:
    book = PriceBook(db, clock=clock)
    await book.start(all_models(settings), settings.upstreams)
    stack.push_async_callback(book.close)
    return book


def _state(settings: Settings, clock: Clock) -> State:
    return open_state(
        settings.state.url,
        data_dir=settings.data_dir,
        workers=settings.server.workers,
        namespace=settings.state.namespace,
        clock=clock,
    )


async def _models(
    stack: AsyncExitStack,
    settings: Settings,
    places: Places,
    db: Database,
    state: State,
    *,
    clock: Clock,
    metrics: Metrics,
) -> tuple[Catalog, Registry]:
    """The catalogue, filled and kept what the configuration and the registry say, and the way to change the latter."""
    catalog, base = await _run(stack, Catalog(())), all_models(settings)
    follower = Follower(
        catalog,
        db,
        state,
        base=base,
        build=Assembly(settings, places, clock=clock, find=lambda name: catalog.get(name)[1].targets[0]).model,
        settings=settings.registry,
        call_timeout_s=settings.server.call_timeout_s,
    )
    await _run(stack, follower)
    metrics.batches.watch(catalog.batch_figures)
    return catalog, Registry(db, state, follower, clock=clock, base=base, settings=settings.registry)


def _cache(settings: Settings, state: State, embedder: Embedder, *, clock: Clock) -> ResponseCache:
    """Answers lie where all instances see them, or in this worker's memory. A SQLite file is no place for them: they
    are large, and everybody's limits are in it."""
    store: AnswerStore
    if settings.state.url.startswith(("redis://", "rediss://")):
        store, turns = SharedAnswers(state), Turns(state, clock=clock, wait_s=settings.cache.wait_s)
    else:
        store, turns = MemoryAnswers(clock, max_bytes=settings.cache.memory_bytes), None
    return ResponseCache(store, clock=clock, embed=embedder.embed, turns=turns)


def _levels(settings: Settings, db: Database, state: State, *, clock: Clock) -> ServiceLevels:
    """What was promised of the calls, of some models by their own row, and what comes of it."""
    own = {row.id: row.slo for row in all_models(settings) if row.slo is not None}
    return ServiceLevels(db, state, metrics=process_metrics(), clock=clock, settings=settings.slo, of_models=own)


def _treasury(db: Database, state: State, ledger: Ledger, clock: Clock) -> Treasury:
    """What keeps budgets true to the usage that the ledger records."""
    return Treasury(db, state, clock=clock, flush=ledger.flush, progress=lambda: ledger.progress, notify=log_event)


def _budgets(db: Database, state: State, treasury: Treasury, clock: Clock, ids: IdSource) -> BudgetService:
    """Budgets as customers change them; their keys' callers are announced with each change."""
    return BudgetService(db, treasury, clock=clock, ids=ids, announce=lambda id_: announced(state, organization_id=id_))
