"""What the doors are given: the services of one process, put together in `modelport.main`."""

from __future__ import annotations

from dataclasses import dataclass, field

from modelport.access.keyring import KeyRing
from modelport.access.service import KeyService
from modelport.budgets.service import BudgetService
from modelport.catalog.registry import Registry
from modelport.catalog.service import Catalog
from modelport.db.engine import Database
from modelport.experiments.service import ExperimentService
from modelport.inference.admission import Admission
from modelport.inference.corridor import Corridor
from modelport.kit.clock import Clock
from modelport.kit.ids import IdSource
from modelport.limits.service import Limiter
from modelport.metering.ledger import Ledger
from modelport.metering.prices import PriceBook
from modelport.metering.service import UsageService
from modelport.observe.metrics import Metrics
from modelport.replay.idempotency.service import Idempotency
from modelport.settings import Settings
from modelport.slo.service import ServiceLevels
from modelport.state.protocol import State


@dataclass(slots=True)
class Phase:
    """Where the process is in its life. A draining process finishes what it has and says it isn't ready."""

    draining: bool = False


@dataclass(frozen=True, slots=True)
class Platform:
    settings: Settings
    clock: Clock
    ids: IdSource
    db: Database
    state: State
    keyring: KeyRing
    keys: KeyService
    limiter: Limiter
    budgets: BudgetService
    admission: Admission
    catalog: Catalog
    corridor: Corridor
    ledger: Ledger
    prices: PriceBook
    usage: UsageService
    idempotency: Idempotency
    metrics: Metrics
    levels: ServiceLevels
    registry: Registry
    experiments: ExperimentService
    phase: Phase = field(default_factory=Phase)
