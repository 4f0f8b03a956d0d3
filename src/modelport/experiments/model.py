"""What an experiment is: variants of a model, who gets which, and by what they are judged."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Status = Literal["running", "paused", "stopped"]
Metric = Literal["error_rate", "latency", "feedback"]
Audience = Literal["organization", "everyone"]


@dataclass(frozen=True, slots=True)
class Variant:
    """One of the answers that are compared. `version` is a version or an alias; None is the model's `latest`."""

    name: str
    model: str
    version: str | None
    weight: int


@dataclass(frozen=True, slots=True)
class Experiment:
    """`audience` says whose calls it concerns: those of `organization_id`, or everyone's. `sticky` is what always gets
    the same variant: `key`, `organization`, `call` (each by itself), or `tag:name`.

    The first variant is what the others are compared with. `since_us`: when it got its present weights.
    """

    id: str
    organization_id: str
    audience: Audience
    name: str
    model: str
    variants: tuple[Variant, ...]
    sticky: str
    metric: Metric
    alpha: float
    status: Status
    created_us: int
    since_us: int

    @property
    def slot(self) -> str:
        """What only one unfinished experiment can have: the calls of an organization, or of all, to a model."""
        return f"{'*' if self.audience == 'everyone' else self.organization_id}/{self.model}"

    def arm(self, variant: Variant) -> str:
        """How a call's record and its answer name the variant."""
        return f"{self.id}={variant.name}"


@dataclass(frozen=True, slots=True)
class Feedback:
    """What somebody thought of an answer: from 0, useless, to 1. One for each call and key."""

    call_id: str
    key_id: str
    organization_id: str
    score: float
    comment: str
    created_us: int
