"""An answer that is stored, the form in which a call wants it, and what a call owes for it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import msgspec

from modelport.calls import Call, Usage

Outcome = Literal["HIT", "MISS", "BYPASS"]
# Where an answer comes from: the store, another call's that is on its way, or made for this call.
Origin = Literal["hit", "follower", "miss", "bypass"]
WHOLE_SHARE = 10_000


class Form(NamedTuple):
    """How a call asked to be answered; a stored answer has the form of the call that made it."""

    stream: bool
    include_usage: bool

    @classmethod
    def of(cls, call: Call) -> Form:
        """Only streams have a choice about usage: a JSON body always tells it."""
        return cls(call.stream, call.stream and bool(getattr(call.request, "include_usage", False)))


class CachedAnswer(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """The deltas of an answer that ended well. `whole` as in `Delta`; `value` of models that predict."""

    stored_us: int
    form: Form
    pieces: list[bytes]
    whole: bool
    value: Any
    usage: Usage


@dataclass(frozen=True, slots=True)
class Share:
    """What one call owes: `usage`, at `price_basis_points` hundredths of a percent of the normal price.

    `free` of limits: the call made no work, so its tokens count in none.
    """

    usage: Usage
    price_basis_points: int = WHOLE_SHARE
    free: bool = False
