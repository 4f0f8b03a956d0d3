"""Which purses a call draws from, and what is done when one has not enough in it. Pure.

A *purse* is a budget in one of its periods: the day, the month, or all time since the budget was made.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from modelport.budgets.quote import Quote
from modelport.calls import Budget
from modelport.errors import BadRequest, BudgetExceeded, LimitExceeded
from modelport.kit.calendar import bucket_end, bucket_start
from modelport.kit.clock import rfc3339
from modelport.kit.money import format_usd, parse_usd
from modelport.state.protocol import HOLD_RETRY_S, MAX_SPENT, PURSE, Bucket, PurseLevel

NAME = "budget"
# Where there is no hard limit: more than can ever be spent.
UNLIMITED = 2**62
MAX_TAG_VALUE = 512
# The names that reports can group by; databases read a tag by its name in a JSON path, which knows no other.
_TAG = re.compile(r"([A-Za-z0-9_.-]{1,64})=(.+)", re.DOTALL)


class Purse(NamedTuple):
    """A budget in the period that holds an instant. `key` names it in the shared state."""

    key: str
    budget: Budget
    start_us: int
    end_us: int | None

    def bucket(self, amount: int) -> Bucket:
        """What a call takes from it: `amount`, or nothing beforehand where no limit could refuse it."""
        hard = self.budget.hard_nanos
        return Bucket(self.key, NAME, UNLIMITED if hard is None else hard, PURSE, 0 if hard is None else amount)


def purse_at(budget: Budget, at_us: int) -> Purse:
    """The purse that a call draws from which began at `at_us`."""
    if budget.period == "total":
        return Purse(f"{budget.id}:total", budget, budget.created_us, None)
    start_us = bucket_start(at_us, budget.period)
    return Purse(f"{budget.id}:{rfc3339(start_us)[:10]}", budget, start_us, bucket_end(start_us, budget.period))


def holds_at(purse: Purse, budget: Budget, at_us: int) -> bool:
    """Whether it is the purse of `budget` for a call that began at `at_us`."""
    same = purse.budget is budget or purse.budget == budget
    return same and purse.start_us <= at_us and (purse.end_us is None or at_us < purse.end_us)


def concerns(budget: Budget, metadata: Mapping[str, str]) -> bool:
    """Whether a call with these tags draws from the budget: from every one but those of tags that it does not carry."""
    return budget.scope != "tag" or _carries(metadata, budget.target)


def purses_of(budgets: Sequence[Budget], metadata: Mapping[str, str], at_us: int) -> list[Purse]:
    """The purses of one call: of every budget but those of tags that it does not carry."""
    return [purse_at(budget, at_us) for budget in budgets if concerns(budget, metadata)]


def _carries(metadata: Mapping[str, str], target: str) -> bool:
    name, _, value = target.partition("=")
    return metadata.get(name) == value


class Fit(enum.Enum):
    """What to do with a call for which a purse has not enough at the moment."""

    TAKE = "take"
    WAIT = "wait"
    SPENT = "spent"


def fit(quote: Quote, levels: Sequence[PurseLevel]) -> tuple[Fit, int | None]:
    """Whether the call is to be tried (again), and with which bound of each answer.

    An answer is made shorter only where the budget could not pay for the whole of it even if nothing else were
    running; money that running calls hold mostly comes back, and is waited for. And it is made no shorter than half
    of what there would be if they all turned out free: near its end a budget is not handed out in crumbs.
    """
    limited = [level for level in levels if level.bucket.limit < UNLIMITED]
    whole = min((level.bucket.limit - (level.spent or 0) for level in limited), default=UNLIMITED)
    free = min((level.bucket.limit - (level.spent or 0) - level.held for level in limited), default=UNLIMITED)
    wanted = quote.nanos(quote.output_tokens)
    if wanted <= free:
        return Fit.TAKE, quote.output_tokens
    if whole < quote.least_nanos:
        return Fit.SPENT, None
    tokens = quote.affordable_tokens(free) if wanted > whole and 2 * free >= whole else 0
    return (Fit.TAKE, tokens) if tokens >= 1 else (Fit.WAIT, None)


def tightest(levels: Iterable[PurseLevel]) -> PurseLevel | None:
    """The purse with the least left; None where none has a limit."""
    limited = [level for level in levels if level.bucket.limit < UNLIMITED]
    return min(limited, key=lambda level: level.remaining, default=None)


def refusal(budget: Budget, end_us: int | None, *, left_nanos: int, needed_nanos: int) -> BudgetExceeded:
    """The error for a call that the budget will not pay for before its next period."""
    hard = format_usd(budget.hard_nanos or 0)
    until = "It has no next period." if end_us is None else f"The next period begins at {rfc3339(end_us)}."
    if left_nanos <= 0:
        what = f"{_whose(budget)} budget of ${hard} is spent."
    else:
        what = (
            f"{_whose(budget)} budget of ${hard} has ${format_usd(left_nanos)} left, and this call can cost "
            f"${format_usd(needed_nanos)}."
        )
    error = BudgetExceeded(f"{what} {until} Raise the budget to go on before that.")
    error.left_nanos = max(left_nanos, 0)
    return error


def busy(budget: Budget) -> LimitExceeded:
    """The error for a call that waits for money which running calls have reserved."""
    return LimitExceeded(
        f"{_whose(budget)} budget has nothing left that running calls have not reserved; come back in a moment.",
        kind="concurrency",
        retry_after_s=HOLD_RETRY_S,
    )


def _whose(budget: Budget) -> str:
    names = {"organization": "The organization's", "project": "The project's", "key": "This API key's"}
    return names.get(budget.scope) or f"The tag {budget.target!r}'s"


def parse_limit(text: str | None, *, param: str) -> int | None:
    """A limit of a budget in nano-dollars. Raises: BadRequest that names `param`."""
    if text is None:
        return None
    try:
        nanos = parse_usd(text)
    except ValueError as error:
        raise BadRequest(f"{error}.", param=param) from None
    if not 0 <= nanos <= MAX_SPENT:
        raise BadRequest(f"A limit is from 0 to {format_usd(MAX_SPENT)} dollars.", param=param)
    return nanos


def check_limits(soft_nanos: int | None, hard_nanos: int | None) -> None:
    """Raises: BadRequest for limits that make no budget."""
    if soft_nanos is None and hard_nanos is None:
        raise BadRequest("A budget has a soft limit, a hard limit, or both.", param="hard_limit_usd")
    if soft_nanos is not None and hard_nanos is not None and soft_nanos > hard_nanos:
        raise BadRequest("The soft limit is above the hard one, so it would never be told.", param="soft_limit_usd")


def check_tag(target: str) -> None:
    """Raises: BadRequest unless `target` is a tag, `name=value`."""
    found = _TAG.fullmatch(target)
    if found is None or len(found[2]) > MAX_TAG_VALUE:
        raise BadRequest("The target of a tag's budget is name=value, such as feature=chat.", param="target")
