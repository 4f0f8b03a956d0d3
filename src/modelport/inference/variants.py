"""The catalogue as experiments need it: what a name means to a caller."""

from __future__ import annotations

from modelport.calls import Caller, Operation
from modelport.catalog.rules import split_name
from modelport.catalog.service import Catalog


class VariantModels:
    """An `experiments.service.Models`."""

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog

    def look_up(self, caller: Caller, name: str) -> tuple[str, str | None, str, frozenset[Operation]]:
        """Of a name the model's id, the version as named, that which it means now, and what can be asked of it.

        Raises: ModelNotFound, also for what the caller may not use.
        """
        model = self._catalog.get_for(caller, name)
        _, version = self._catalog.get(name)
        named = None if name in self._catalog.models else split_name(name)[1]
        return model.id, named, version.id, model.operations
