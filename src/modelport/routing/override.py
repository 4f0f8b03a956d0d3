"""What a call asks of its own routing: one header (or one member of `metadata`), read and applied. Pure.

    x-modelport-route: strategy=lowest_latency, attempts=1, fallback=?0, first_token_s=2, answer_s=9, total_s=20

A call may choose how the targets of its route are tried; it can ask for none outside of it, for no more attempts and
no longer patience than the operator gives.

Source: the syntax is a dictionary of RFC 9651 (structured fields), of which booleans, numbers and tokens are used.
"""

from __future__ import annotations

import dataclasses
import functools
import typing

from modelport.calls import Patience
from modelport.errors import BadRequest
from modelport.routing.model import Policy, Route
from modelport.settings import Strategy

HEADER = "x-modelport-route"
# Where a client can't set headers. It is a tag like others, so it is also seen in usage and receipts.
METADATA = "modelport_route"
MAX_LENGTH = 200
_STRATEGIES = typing.get_args(Strategy)
_TIMES = ("first_token_s", "answer_s", "total_s")
_WORDS = ", ".join(("strategy", "attempts", "fallback", "hedge", *_TIMES))


@dataclasses.dataclass(frozen=True, slots=True)
class Override:
    """What was asked for; None is what was not."""

    strategy: Strategy | None = None
    attempts: int | None = None
    fallback: bool | None = None
    hedge: bool | None = None
    first_token_s: float | None = None
    answer_s: float | None = None
    total_s: float | None = None


@functools.lru_cache(maxsize=1024)
def parse_override(text: str) -> Override:
    """Raises: BadRequest that names the member that is wrong."""
    if len(text) > MAX_LENGTH:
        raise _wrong(f"it is longer than {MAX_LENGTH} characters")
    found: dict[str, object] = {}
    for part in text.split(","):
        name, mark, value = part.strip().partition("=")
        if name in ("fallback", "hedge"):
            found[name] = _boolean(name, value if mark else "?1")
        elif name == "strategy":
            found[name] = _strategy(value)
        elif name == "attempts":
            found[name] = _count(name, value)
        elif name in _TIMES:
            found[name] = _number(name, value)
        else:
            raise _wrong(f"there is no {name[:40]!r}; it has {_WORDS}")
    return Override(**found)  # type: ignore[arg-type]


def apply_override(policy: Policy, asked: Override, route: Route) -> Policy:
    """The policy with what was asked for. Raises: BadRequest for what the operator does not let callers change."""
    for name in _groups(asked):
        if name not in policy.overrides:
            raise _wrong(f"{name!r} can't be changed for the model {route.model!r}")
    return dataclasses.replace(
        policy,
        strategy=asked.strategy or policy.strategy,
        attempts=min(asked.attempts or policy.attempts, policy.attempts),
        fall_back=policy.fall_back and asked.fallback is not False,
        hedge=None if asked.hedge is False else policy.hedge,
        patience=_patience(policy, asked, route),
    )


def _groups(asked: Override) -> list[str]:
    """The settings of `overrides` that are needed."""
    names = [name for name in ("strategy", "attempts", "fallback", "hedge") if getattr(asked, name) is not None]
    if any(getattr(asked, name) is not None for name in _TIMES):
        names.append("timeouts")
    return names


def _patience(policy: Policy, asked: Override, route: Route) -> Patience | None:
    if all(getattr(asked, name) is None for name in _TIMES):
        return policy.patience
    patience = policy.patience or Patience()
    # Where the route leaves it to the upstreams' rows, the most patient of them is still the operator's bound.
    rows = [candidate.first_token_s for candidate in route.candidates if candidate.first_token_s is not None]
    first_s = patience.first_token_s if patience.first_token_s is not None else max(rows, default=None)
    return patience._replace(
        first_token_s=_smaller(asked.first_token_s, first_s) if asked.first_token_s else patience.first_token_s,
        answer_s=_smaller(asked.answer_s, patience.answer_s),
        total_s=_smaller(asked.total_s, patience.total_s),
    )


def _smaller(asked: float | None, allowed: float | None) -> float | None:
    given = [value for value in (asked, allowed) if value is not None]
    return min(given, default=None)


def _strategy(value: str) -> Strategy:
    if value not in _STRATEGIES:
        raise _wrong(f"strategy is one of {', '.join(_STRATEGIES)}")
    return typing.cast(Strategy, value)


def _boolean(name: str, value: str) -> bool:
    if value not in ("?0", "?1"):
        raise _wrong(f"{name} is ?1 or ?0")
    return value == "?1"


def _count(name: str, value: str) -> int:
    if not (value.isascii() and value.isdigit() and len(value) <= 4 and int(value) > 0):
        raise _wrong(f"{name} is a whole number above 0")
    return int(value)


def _number(name: str, value: str) -> float:
    digits = value.replace(".", "", 1)
    if not (digits.isascii() and digits.isdigit() and len(value) <= 12 and float(value) > 0):
        raise _wrong(f"{name} is a number above 0")
    return float(value)


def _wrong(what: str) -> BadRequest:
    return BadRequest(f"The header {HEADER!r} (or metadata.{METADATA}) can't be followed: {what}.", param=HEADER)
