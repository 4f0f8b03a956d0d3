"""What the configuration says about an ensemble."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec

Combine = Literal["mean", "weighted_mean", "vote", "first_success"]


class EnsembleOptions(msgspec.Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    """`members` are names of models, with a version where one is meant: `iris@1`."""

    members: Annotated[list[Annotated[str, msgspec.Meta(min_length=1)]], msgspec.Meta(min_length=2, max_length=16)]
    combine: Combine = "mean"
    weights: list[Annotated[float, msgspec.Meta(gt=0)]] = []  # One for each member; for weighted_mean and vote.
    # How many members must answer; empty: all, and of first_success one.
    require: Annotated[int, msgspec.Meta(ge=1)] | None = None

    @property
    def least(self) -> int:
        if self.combine == "first_success":
            return 1
        return len(self.members) if self.require is None else self.require

    def weight(self, place: int) -> float:
        return self.weights[place] if self.weights else 1.0


def parse_options(options: dict[str, Any]) -> EnsembleOptions:
    """Raises: ValueError that names what is wrong."""
    try:
        parsed = msgspec.convert(options, EnsembleOptions)
    except msgspec.ValidationError as error:
        raise ValueError(f"an ensemble's options are not valid: {error}") from None
    if parsed.weights and len(parsed.weights) != len(parsed.members):
        raise ValueError(f"an ensemble of {len(parsed.members)} members has {len(parsed.weights)} weights")
    if parsed.combine == "weighted_mean" and not parsed.weights:
        raise ValueError("an ensemble that combines by weighted_mean needs weights")
    if parsed.least > len(parsed.members):
        raise ValueError(f"an ensemble requires {parsed.require} answers of {len(parsed.members)} members")
    return parsed
