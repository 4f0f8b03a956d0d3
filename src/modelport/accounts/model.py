"""What accounts keeps: plans, organizations and projects."""

from __future__ import annotations

from dataclasses import dataclass

from modelport.calls import Limits


@dataclass(frozen=True, slots=True)
class Plan:
    """A tier. `discount_basis_points` are hundredths of a percent off every price."""

    id: str
    name: str
    limits: Limits
    discount_basis_points: int
    created_us: int


@dataclass(frozen=True, slots=True)
class Organization:
    """A tenant. A limit of its own replaces its plan's."""

    id: str
    name: str
    plan_id: str
    limits: Limits
    created_us: int


@dataclass(frozen=True, slots=True)
class Project:
    """A cost centre of an organization."""

    id: str
    organization_id: str
    name: str
    created_us: int


# What a new installation starts with; rows in the database from then on, to be changed there.
FIRST_PLANS: tuple[tuple[str, str, Limits], ...] = (
    ("free", "Free", Limits(requests_per_minute=60, tokens_per_minute=20_000, concurrent_calls=4)),
    ("paid", "Paid", Limits(requests_per_minute=600, tokens_per_minute=200_000, concurrent_calls=32)),
    ("custom", "Custom", Limits()),
)
