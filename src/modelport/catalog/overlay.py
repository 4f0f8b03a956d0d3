"""The configuration's models with what the registry lays over them. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime

from modelport.catalog.registered import AddedVersion, AliasStep, Registered, Retirement
from modelport.catalog.rules import aliases_of
from modelport.settings import DeprecationSettings, ModelSettings, VersionSettings

STANDING = ("latest", "stable")


def overlay(base: Sequence[ModelSettings], registered: Registered) -> list[ModelSettings]:
    """Rows as they would stand in the configuration: its own, each with the versions added to it, then new models.

    Where both have a version of one name, the configuration's holds.
    """
    rows = {row.id: row for row in base}
    for added in registered.versions:
        if added.removed:
            continue
        row = rows.get(added.model)
        if row is None:
            rows[added.model] = model_of(added)
        elif can_have_versions(row) and added.version not in {known.version for known in row.all_versions()}:
            versions = [*row.all_versions(), _version_of(added)]
            rows[added.model] = row.model_copy(update={"versions": versions, "source": None})
    return [_retired(row, registered.retirements) for row in rows.values()]


def model_of(added: AddedVersion) -> ModelSettings:
    """The row of a model that the configuration does not have. Raises: ValueError, saying what of it can't be."""
    return ModelSettings.model_validate(
        {
            "id": added.model,
            "kind": added.kind,
            "backend": added.backend,
            "description": added.description,
            "versions": [_version_of(added)],
        }
    )


def can_have_versions(row: ModelSettings) -> bool:
    """Whether versions can be added to it: upstreams and the sandbox have none."""
    return not row.targets and bool(row.source or row.versions)


def base_aliases(row: ModelSettings, registered: Registered) -> dict[str, str]:
    """What the model's aliases mean by the configuration alone; of a model that was added, its first version."""
    added = {v.version for v in registered.versions if v.model == row.id and not v.removed}
    own = [v.version for v in row.all_versions() if v.version not in added]
    if own:
        return aliases_of(own, row.aliases)
    first = row.all_versions()[0].version
    return dict.fromkeys(STANDING, first)


def wanted_aliases(row: ModelSettings, registered: Registered) -> dict[str, tuple[str, ...]]:
    """Of each alias what it is to mean, then what it meant before, the latest first; only versions that there are."""
    there = {version.version for version in row.all_versions()}
    base = base_aliases(row, registered)
    found: dict[str, tuple[str, ...]] = {alias: (version,) for alias, version in base.items()}
    for alias in registered.aliases(row.id):
        means = _meanings(registered.steps[row.id, alias], base.get(alias, ""))
        meant = tuple(dict.fromkeys(version for version in means if version in there))
        if means[0] and meant:
            found[alias] = meant
        elif not means[0] and alias not in base:
            found.pop(alias, None)
    return found


def effective(
    wanted: Sequence[str], current: str | None, *, ready: Callable[[str], bool], failed: Callable[[str], bool]
) -> str:
    """Which version an alias leads to now: the one it is to mean once that can answer, until then what it meant.

    Where the wanted one can't be loaded and nothing else is current, as after a start, an earlier meaning stands in.
    """
    first = wanted[0]
    if ready(first):
        return first
    if current is not None and current != first:
        return current
    if failed(first):
        return next((version for version in wanted[1:] if ready(version)), first)
    return first


def previous(steps: Sequence[AliasStep], base: str, there: Iterable[str]) -> str | None:
    """What the alias meant before what it means now, of the versions that there are."""
    means = _meanings(steps, base)
    known = set(there)
    return next((version for version in means[1:] if version != means[0] and version in known), None)


def _meanings(steps: Sequence[AliasStep], base: str) -> list[str]:
    """Newest first; the configuration's own meaning stands behind them all, and for each step that says so."""
    return [step.version or base for step in steps] + [base]


def _version_of(added: AddedVersion) -> VersionSettings:
    return VersionSettings.model_validate(
        {
            "version": added.version,
            "source": added.source,
            "sha256": added.sha256,
            "options": dict(added.options),
        }
    )


def _retired(row: ModelSettings, retirements: Sequence[Retirement]) -> ModelSettings:
    own: Mapping[str, Retirement] = {end.version: end for end in retirements if end.model == row.id}
    if not own:
        return row
    update: dict[str, object] = {}
    if "" in own:
        update["deprecation"] = _dates(own[""])
    if can_have_versions(row):
        versions = [
            version.model_copy(update={"deprecation": _dates(own[version.version])})
            if version.version in own
            else version
            for version in row.all_versions()
        ]
        update |= {"versions": versions, "source": None}
    return row.model_copy(update=update)


def _dates(end: Retirement) -> DeprecationSettings:
    return DeprecationSettings(
        deprecated_at=_moment(end.deprecated_us),
        sunset_at=None if end.sunset_us is None else _moment(end.sunset_us),
        successor=end.successor,
        link=end.link,
    )


def _moment(us: int) -> datetime:
    return datetime.fromtimestamp(us / 1_000_000, UTC)
