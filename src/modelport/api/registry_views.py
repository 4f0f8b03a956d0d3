"""Models, versions and aliases as operators see them."""

from __future__ import annotations

from modelport.api.deprecations import deprecation_body
from modelport.api.platform import Platform
from modelport.api.registry_bodies import AdminModel, AliasBody, StepBody, VersionBody
from modelport.backends.protocol import Status
from modelport.catalog.formats import format_name
from modelport.catalog.model import Model, Version
from modelport.catalog.registered import AliasStep
from modelport.catalog.service import version_health
from modelport.errors import ModelNotFound, NotFound
from modelport.kit.clock import rfc3339


def model_body(platform: Platform, model: Model) -> AdminModel:
    """The model with everything below it."""
    return AdminModel(
        id=model.id,
        object="admin.model",
        kind=model.kind.value,
        backend=model.settings.backend,
        description=model.settings.description,
        origin="configuration" if platform.registry.is_configured(model.id) else "added",
        versions=[version_body(platform, model, version) for version in model.versions],
        aliases=[alias_body(platform, model, alias) for alias in model.aliases],
    )


def version_body(platform: Platform, model: Model, version_id: str) -> VersionBody:
    """One version. Raises: ModelNotFound."""
    version = model.versions.get(version_id)
    if version is None:
        there = ", ".join(model.versions)
        raise ModelNotFound(f"The model {model.id!r} has no version {version_id!r}; it has {there}.")
    added = platform.registry.registered.version(model.id, version_id)
    row = next((one for one in model.settings.all_versions() if one.version == version_id), None)
    health, (done, total) = version_health(version), _progress(version)
    source = "" if row is None else row.source
    return VersionBody(
        id=version_id,
        object="admin.model.version",
        model=model.id,
        origin="configuration" if added is None else "added",
        status=health.status.value,
        detail=health.detail,
        source=source,
        format=format_name(source),
        sha256=version.sha256,
        size_bytes=None if added is None else added.size_bytes,
        done_bytes=done,
        total_bytes=total,
        options={} if row is None else dict(row.options),
        aliases=[alias for alias, means in model.aliases.items() if means == version_id],
        created_at=None if added is None else rfc3339(added.created_us),
        created_by=None if added is None else added.created_by,
        deprecation=deprecation_body(version.deprecation),
    )


def alias_body(platform: Platform, model: Model, alias: str) -> AliasBody:
    """One alias. Raises: NotFound."""
    if alias not in model.aliases:
        raise NotFound(f"The model {model.id!r} has no alias {alias!r}; it has {', '.join(model.aliases)}.")
    steps = platform.registry.registered.steps.get((model.id, alias), ())
    return AliasBody(
        alias=alias,
        object="admin.model.alias",
        version=model.aliases[alias],
        pending=model.pending.get(alias),
        detail=pending_detail(model, alias),
        previous=platform.registry.previous(model.id, alias),
        history=[_step(step) for step in steps],
    )


def pending_detail(model: Model, alias: str) -> str:
    """Why an alias does not lead yet to what it is to mean; empty where nothing is pending."""
    wanted = model.pending.get(alias)
    if wanted is None:
        return ""
    health, now = version_health(model.versions[wanted]), model.aliases[alias]
    why = "could not be loaded" if health.status is Status.FAILED else "is loading"
    told = f": {health.detail}" if health.detail else "."
    return f"{alias!r} leads to {model.id}@{now} until {model.id}@{wanted} can answer, which {why}{told}"


def _progress(version: Version) -> tuple[int, int]:
    tell = getattr(version.targets[0].backend, "progress", None)
    done, total = tell() if tell is not None else (0, 0)
    return done, total


def _step(step: AliasStep) -> StepBody:
    return StepBody(version=step.version, created_at=rfc3339(step.created_us), created_by=step.created_by)
