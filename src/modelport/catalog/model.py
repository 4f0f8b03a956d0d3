"""What the platform offers: models, each with versions and the targets that can answer for them."""

from __future__ import annotations

from dataclasses import dataclass, field

from modelport.backends.protocol import Target
from modelport.calls import ModelKind, Operation
from modelport.catalog.deprecation import Deprecation
from modelport.settings import ModelSettings

OPERATIONS: dict[ModelKind, frozenset[Operation]] = {
    ModelKind.CHAT: frozenset({Operation.CHAT, Operation.COMPLETION}),
    ModelKind.EMBEDDING: frozenset({Operation.EMBEDDING, Operation.PREDICT, Operation.INFER}),
    ModelKind.IMAGE: frozenset({Operation.PREDICT, Operation.INFER}),
    ModelKind.TABULAR: frozenset({Operation.PREDICT, Operation.INFER}),
    ModelKind.CUSTOM: frozenset({Operation.PREDICT, Operation.INFER}),
}


@dataclass(frozen=True, slots=True)
class Version:
    """An immutable version of a model. Upstream models have one, called 1."""

    id: str
    targets: tuple[Target, ...]
    sha256: str | None = None
    # Its own, or that of its model.
    deprecation: Deprecation | None = None


@dataclass(frozen=True, slots=True)
class Model:
    """A public model. `aliases` are moving names for versions; every model has `latest` and `stable`.

    `pending` are aliases that are to mean another version as soon as that one can answer.
    """

    id: str
    kind: ModelKind
    settings: ModelSettings
    versions: dict[str, Version]
    created_us: int
    aliases: dict[str, str] = field(default_factory=dict)
    pending: dict[str, str] = field(default_factory=dict)

    @property
    def operations(self) -> frozenset[Operation]:
        """What can be asked of it. The sandbox answers everything."""
        return frozenset(Operation) if self.settings.backend == "sandbox" else OPERATIONS[self.kind]
