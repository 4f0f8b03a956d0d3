"""How somebody is told that a budget's limit is near or reached: a line in the log; later, webhooks beside it."""

from __future__ import annotations

import structlog

from modelport.budgets.model import BudgetEvent
from modelport.kit.clock import rfc3339
from modelport.kit.money import format_usd

_log = structlog.get_logger("modelport.budgets")


def log_event(event: BudgetEvent) -> None:
    """Write the event as one structured line."""
    budget = event.budget
    _log.warning(
        event.type,
        organization_id=budget.organization_id,
        budget_id=budget.id,
        scope=budget.scope,
        target=budget.target,
        period=budget.period,
        period_start=rfc3339(event.start_us),
        spent_usd=format_usd(event.spent_nanos),
        soft_limit_usd=None if budget.soft_nanos is None else format_usd(budget.soft_nanos),
        hard_limit_usd=None if budget.hard_nanos is None else format_usd(budget.hard_nanos),
    )
