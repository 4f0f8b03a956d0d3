"""Which version a name means. Pure."""

from __future__ import annotations

from collections.abc import Mapping

from modelport.calls import Operation
from modelport.catalog.model import Model, Version
from modelport.errors import BadRequest, ModelNotFound

# `iris@1` and `iris@stable` name a version where the request has no member of its own for it.
VERSION_MARK = "@"


def aliases_of(versions: list[str], configured: Mapping[str, str]) -> dict[str, str]:
    """Alias → version: `latest` and `stable` mean the last version unless configured otherwise.

    Raises: ValueError when an alias points to no version, or bears a version's own name.
    """
    aliases = {"latest": versions[-1], "stable": versions[-1], **configured}
    for alias, version in aliases.items():
        if version not in versions:
            raise ValueError(f"alias {alias!r} points to version {version!r}; there is {', '.join(versions)}")
        if alias in versions:
            raise ValueError(f"alias {alias!r} is also the name of a version")
    return aliases


def split_name(name: str) -> tuple[str, str | None]:
    """`("iris", "1")` of `iris@1`; the version is None where none is named."""
    model, mark, version = name.partition(VERSION_MARK)
    return model, version if mark else None


def resolve(models: Mapping[str, Model], name: str, *, version: str | None) -> tuple[Model, Version]:
    """The model and version that `name` (perhaps with `@version`) means.

    Raises: ModelNotFound, naming what there is.
    """
    model = models.get(name)
    if model is None:
        base, named = split_name(name)
        model = models.get(base)
        version = named or version
    if model is None:
        raise ModelNotFound(f"The model {name!r} does not exist; GET /v1/models lists those that do.", param="model")
    wanted = version or "latest"
    found = model.versions.get(model.aliases.get(wanted, wanted))
    if found is None:
        known = ", ".join([*model.versions, *model.aliases])
        raise ModelNotFound(f"The model {model.id!r} has no version {wanted!r}; it has {known}.", param="model_version")
    return model, found


def check_operation(model: Model, operation: Operation) -> None:
    """Raises: BadRequest when the model can't do this, saying where it can be used."""
    if operation not in model.operations:
        doors = {
            "chat": "/v1/chat/completions",
            "embedding": "/v1/embeddings",
            "image": "/v1/images/classify or /v1/predict",
            "tabular": "/v1/predict",
            "custom": "/v1/predict",
        }
        raise BadRequest(
            f"The model {model.id!r} is of kind {model.kind.value!r} and can't answer this; call it at "
            f"{doors[model.kind.value]}.",
            param="model",
        )
