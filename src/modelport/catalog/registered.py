"""What the registry keeps beside the configuration: versions, meanings of aliases, retirements."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class AddedVersion:
    """A version that was added while serving. `sha256` and `size_bytes` are None until its file has come.

    `removed`: it is not served any more; its name stays taken by its file.
    """

    model: str
    version: str
    kind: str
    backend: str
    source: str
    created_us: int
    created_by: str
    sha256: str | None = None
    size_bytes: int | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    description: str = ""
    removed: bool = False


@dataclass(frozen=True, slots=True)
class AliasStep:
    """What an alias meant from `created_us` on. `version` is empty where it was taken back: as configured again."""

    model: str
    alias: str
    number: int
    version: str
    created_us: int
    created_by: str


@dataclass(frozen=True, slots=True)
class Retirement:
    """The announced end of one version."""

    model: str
    version: str
    deprecated_us: int
    sunset_us: int | None
    successor: str
    link: str
    created_us: int
    created_by: str


@dataclass(frozen=True, slots=True)
class Registered:
    """All of it as of one revision. The steps of each alias come newest first."""

    revision: int = 0
    versions: tuple[AddedVersion, ...] = ()
    steps: Mapping[tuple[str, str], tuple[AliasStep, ...]] = field(default_factory=dict)
    retirements: tuple[Retirement, ...] = ()

    def version(self, model: str, version: str) -> AddedVersion | None:
        """The added version of this name, a removed one too."""
        return next((row for row in self.versions if row.model == model and row.version == version), None)

    def aliases(self, model: str) -> list[str]:
        """The aliases of a model that were ever moved."""
        return [alias for owner, alias in self.steps if owner == model]
