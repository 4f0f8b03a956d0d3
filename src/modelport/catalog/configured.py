"""Which models this installation offers: the operator's rows, then those that come with the platform."""

from __future__ import annotations

from collections.abc import Mapping

from modelport.backends.ensemble.options import parse_options
from modelport.catalog.defaults import default_models
from modelport.catalog.rules import split_name
from modelport.catalog.schemas import check_schema
from modelport.settings import ModelSettings, Settings


def all_models(settings: Settings) -> list[ModelSettings]:
    """The configured models, then the default ones that no configured model replaces."""
    configured = {row.id for row in settings.models}
    extra = [row for row in default_models() if row.id not in configured] if settings.default_models else []
    return [*settings.models, *extra]


def check_models(settings: Settings) -> None:
    """What the rows of models say of each other.

    Raises: ValueError when a model falls back to one that there is not, a default one included, or to itself; when the
    model that is to compare its questions does not embed; when an ensemble's members are no models of its
    kind; and for a schema that is none.
    """
    rows = all_models(settings)
    kinds = {row.id: "embedding" if row.backend == "sandbox" else row.kind for row in rows}
    for row in rows:
        check_schema(row.input_schema, f"input_schema of model {row.id!r}")
        check_schema(row.output_schema, f"output_schema of model {row.id!r}")
        special = row.route.fallbacks
        for name in (*row.fallbacks, *special.context, *special.content_policy, *special.rate_limit):
            if name not in kinds or name == row.id:
                why = "is itself" if name == row.id else "is not configured"
                raise ValueError(f"model {row.id!r} falls back to {name!r}, which {why}")
        if row.semantic is not None and kinds.get(row.semantic.embedder) != "embedding":
            why = "does not embed" if row.semantic.embedder in kinds else "is not configured"
            raise ValueError(f"model {row.id!r} compares questions with {row.semantic.embedder!r}, which {why}")
        if row.backend == "ensemble":
            _check_ensemble(row, {other.id: other for other in rows})


def _check_ensemble(row: ModelSettings, rows: Mapping[str, ModelSettings]) -> None:
    options = parse_options(row.options)
    for name in options.members:
        member = rows.get(name) or rows.get(split_name(name)[0])
        if member is None:
            raise ValueError(f"the ensemble {row.id!r} has a member {name!r}, which is not configured")
        if member.backend == "ensemble":
            raise ValueError(f"the ensemble {row.id!r} has a member {name!r}, which is an ensemble itself")
        if member.kind != row.kind and member.backend != "sandbox":
            raise ValueError(f"the ensemble {row.id!r} is of kind {row.kind}, and its member {name!r} is not")
    if row.kind == "embedding" or (row.kind == "chat" and options.combine != "first_success"):
        raise ValueError(f"the ensemble {row.id!r}: models of kind {row.kind} can't be combined by {options.combine}")
