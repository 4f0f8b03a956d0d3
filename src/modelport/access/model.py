"""What access keeps: an API key as its owner sees it, and what its holder may do."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from msgspec import UNSET, UnsetType

from modelport.calls import Caller, Limits, Mode

NO_LIMITS = Limits()


@dataclass(frozen=True, slots=True)
class Grant:
    """What a key lets its holder do. None is without a restriction."""

    mode: Mode
    scopes: frozenset[str]
    models: frozenset[str] | None = None
    limits: Limits = NO_LIMITS
    allowed_ips: tuple[str, ...] | None = None
    expires_us: int | None = None
    # By model the version or alias that its bare name means; a preference, so nobody hands it down.
    model_versions: Mapping[str, str] | None = None


@dataclass(frozen=True, slots=True)
class ApiKey:
    """A key without its secret. `hash` is the SHA-256 of the whole key, hexadecimal."""

    id: str
    organization_id: str
    project_id: str
    name: str
    grant: Grant
    prefix: str
    last4: str
    hash: str
    operator: bool
    created_us: int
    last_used_us: int | None = None
    revoked_us: int | None = None


@dataclass(frozen=True, slots=True)
class NewKey:
    """What is asked for. `project_id` None is the asking key's project."""

    name: str
    grant: Grant
    project_id: str | None = None


@dataclass(frozen=True, slots=True)
class KeyChange:
    """What is to be different; UNSET stays as it is, None lifts the restriction as far as the asking key may."""

    name: str | UnsetType = UNSET
    scopes: frozenset[str] | UnsetType = UNSET
    models: frozenset[str] | UnsetType | None = UNSET
    limits: Limits | UnsetType | None = UNSET
    allowed_ips: tuple[str, ...] | UnsetType | None = UNSET
    expires_us: int | UnsetType | None = UNSET
    model_versions: Mapping[str, str] | UnsetType | None = UNSET


@dataclass(frozen=True, slots=True)
class KeyPage:
    """A page of keys; `has_more` when others follow in the same order."""

    keys: list[ApiKey]
    has_more: bool


@dataclass(frozen=True, slots=True)
class KeyHolder:
    """A key as it is looked up to let somebody in: who calls, and what is checked at each use."""

    caller: Caller
    allowed_ips: tuple[str, ...] | None
    expires_us: int | None
    revoked_us: int | None
