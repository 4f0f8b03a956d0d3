"""Changes of models and versions while serving. Every one is a transaction that waits for the one before it."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from sqlalchemy.ext.asyncio import AsyncConnection

from modelport.calls import Caller
from modelport.catalog import store
from modelport.catalog.announce import changing
from modelport.catalog.follower import Follower
from modelport.catalog.formats import backend_of, kind_of
from modelport.catalog.overlay import base_aliases, can_have_versions, model_of, overlay, previous, wanted_aliases
from modelport.catalog.registered import AddedVersion, AliasStep, Registered, Retirement
from modelport.catalog.sources import SourceError, check_address, find_local, is_remote, sha256_of
from modelport.db.engine import Database
from modelport.errors import BadRequest, Conflict, ModelNotFound, NotFound, Unprocessable
from modelport.kit.clock import Clock
from modelport.settings import ModelSettings, RegistrySettings
from modelport.state.protocol import State

# Names by which a model's versions can be asked for; nobody needs more.
_MAX_ALIASES = 32
# Removed versions whose names stay taken, for each that can be there: years of daily versions.
_GONE = 10


@dataclass(frozen=True, slots=True)
class NewVersion:
    """What is asked for. What is empty is found out: the next number, the file's hash, kind and backend."""

    model: str
    source: str
    version: str = ""
    sha256: str = ""
    kind: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)
    description: str = ""
    aliases: Sequence[str] = ()


class Registry:
    """One per process. Concurrency: any number of tasks and processes.

    A change holds in this process once the method returns, in the others within moments.
    """

    def __init__(
        self,
        db: Database,
        state: State,
        follower: Follower,
        *,
        clock: Clock,
        base: Sequence[ModelSettings],
        settings: RegistrySettings,
    ) -> None:
        self._db = db
        self._state = state
        self._follower = follower
        self._clock = clock
        self._base = base
        self._settings = settings

    @property
    def registered(self) -> Registered:
        """What is registered, as this process has it."""
        return self._follower.registered

    def is_configured(self, model: str) -> bool:
        """Whether the model stands in the configuration."""
        return any(row.id == model for row in self._base)

    def previous(self, model: str, alias: str) -> str | None:
        """Where a rollback of the alias would lead, as far as this process knows."""
        registered = self.registered
        steps = registered.steps.get((model, alias), ())
        row = next((row for row in overlay(self._base, registered) if row.id == model), None)
        if not steps or row is None:
            return None
        there = [version.version for version in row.all_versions()]
        return previous(steps, base_aliases(row, registered).get(alias, ""), there)

    async def add(self, actor: Caller, new: NewVersion) -> tuple[AddedVersion, bool]:
        """The version, which begins to load everywhere; false with it where it was there before, with the same file.

        Aliases lead to it once it can answer. Raises: BadRequest, Conflict (the version exists with another file),
        Unprocessable (too many, or a model of another kind), Unavailable.
        """
        found = AddedVersion(
            model=new.model,
            version=new.version,
            kind=new.kind or kind_of(new.source),
            backend=backend_of(new.source),
            source=new.source,
            sha256=new.sha256.lower() or None,
            options=new.options,
            description=new.description,
            created_us=self._clock.now_us(),
            created_by=actor.key_id,
        )
        found = await asyncio.to_thread(_looked_at, found)
        async with changing(self._db, self._state) as conn:
            registered = await store.read_all(conn)
            rows = {row.id: row for row in overlay(self._base, registered)}
            version, made = self._place(found, rows.get(new.model), registered)
            if made:
                await self._insert(conn, version, registered)
            for alias in new.aliases:
                await self._move(conn, actor, (new.model, alias), version.version)
        await self._follower.catch_up()
        return version, made

    async def move(
        self, actor: Caller, model: str, alias: str, *, version: str, expected: str | None = None
    ) -> AliasStep:
        """Have an alias mean a version, as soon as that can answer. `expected` is what it means by the caller's
        knowledge: where another operator was faster, nothing is changed.

        Raises: ModelNotFound, Conflict, Unprocessable (too many aliases), Unavailable.
        """
        async with changing(self._db, self._state) as conn:
            step = await self._move(conn, actor, (model, alias), version, expected=expected)
        await self._follower.catch_up()
        return step

    async def roll_back(self, actor: Caller, model: str, alias: str, *, expected: str | None = None) -> AliasStep:
        """Have an alias mean what it meant before. Raises: as `move`; Conflict where it meant nothing before."""
        async with changing(self._db, self._state) as conn:
            registered = await store.read_all(conn)
            row = self._row(registered, model)
            there = [version.version for version in row.all_versions()]
            steps = registered.steps.get((model, alias), ())
            before = previous(steps, base_aliases(row, registered).get(alias, ""), there) if steps else None
            if before is None:
                raise Conflict(f"The alias {alias!r} of {model!r} has meant nothing else that is still there.")
            step = await self._move(conn, actor, (model, alias), before, expected=expected)
        await self._follower.catch_up()
        return step

    async def drop_alias(self, actor: Caller, model: str, alias: str) -> None:
        """Have an alias mean what the configuration says again, or nothing. Raises: NotFound, Unavailable."""
        async with changing(self._db, self._state) as conn:
            registered = await store.read_all(conn)
            self._row(registered, model)
            steps = registered.steps.get((model, alias), ())
            if not steps or not steps[0].version:
                raise NotFound(f"The alias {alias!r} of {model!r} was not moved; there is nothing to take back.")
            await self._step(conn, actor, (model, alias), "", steps)
        await self._follower.catch_up()

    async def remove(self, model: str, version: str) -> AddedVersion:
        """Take a version out of service: it is unloaded after its last call. Its name stays taken by its file.

        Raises: NotFound; Conflict where an alias means it, or the configuration has it; Unavailable.
        """
        async with changing(self._db, self._state) as conn:
            registered = await store.read_all(conn)
            row = self._row(registered, model)
            found = registered.version(model, version)
            self._check_removable(row, registered, version, found)
            assert found is not None
            await store.set_removed(conn, model=model, version=version, removed=True)
        await self._follower.catch_up()
        return replace(found, removed=True)

    async def remove_model(self, model: str) -> list[AddedVersion]:
        """Take a model that was added out of service, with all its versions and aliases.

        Raises: NotFound; Conflict for a model of the configuration; Unavailable.
        """
        async with changing(self._db, self._state) as conn:
            registered = await store.read_all(conn)
            self._row(registered, model)
            if self.is_configured(model):
                raise Conflict(f"The model {model!r} stands in the configuration: take it out there.")
            gone = [version for version in registered.versions if version.model == model and not version.removed]
            for version in gone:
                await store.set_removed(conn, model=model, version=version.version, removed=True)
            await store.delete_aliases(conn, model=model)
        await self._follower.catch_up()
        return [replace(version, removed=True) for version in gone]

    async def retire(self, retirement: Retirement) -> None:
        """Announce the end of a version, or (with an empty one) of a model. Raises: ModelNotFound, Unavailable."""
        async with changing(self._db, self._state) as conn:
            registered = await store.read_all(conn)
            self._check_there(self._row(registered, retirement.model), retirement.version)
            await store.put_retirement(conn, retirement=retirement)
        await self._follower.catch_up()

    async def keep(self, model: str, version: str) -> None:
        """Take the announcement of an end back. Raises: ModelNotFound, NotFound, Unavailable."""
        async with changing(self._db, self._state) as conn:
            self._row(await store.read_all(conn), model)
            if not await store.delete_retirement(conn, model=model, version=version):
                raise NotFound(f"No end of {model}@{version} was announced here; the configuration's stays.")
        await self._follower.catch_up()

    def _place(self, new: AddedVersion, row: ModelSettings | None, registered: Registered) -> tuple[AddedVersion, bool]:
        """The version as it is to be stored, or as it is there. Raises: BadRequest, Conflict, Unprocessable."""
        if row is not None and not can_have_versions(row):
            raise Conflict(f"The model {row.id!r} is not served from files here, so it has no versions to add.")
        new = _named(new, row, registered)
        known = _known(new, row, registered)
        if known is not None:
            _check_same(new, known)
            return replace(known, removed=False), known.removed
        if row is not None:
            if (new.backend, new.kind) != (row.backend, row.kind):
                raise Unprocessable(f"The versions of {row.id!r} are of kind {row.kind!r} for {row.backend}.")
        elif not new.kind:
            raise BadRequest("Say which kind of model it is: image, tabular or embedding.", param="kind")
        try:
            model_of(new)
        except ValueError as error:
            raise BadRequest(f"The version can't be added: {_first_line(error)}.") from None
        active = sum(not version.removed for version in registered.versions)
        if active >= self._settings.max_versions:
            raise Unprocessable(f"There are {active:,} added versions, the most that can be; remove some first.")
        return new, True

    async def _insert(self, conn: AsyncConnection, version: AddedVersion, registered: Registered) -> None:
        if registered.version(version.model, version.version) is None:
            await store.insert_version(conn, version=version)
            gone = [known for known in registered.versions if known.removed]
            for oldest in gone[: max(len(gone) - _GONE * self._settings.max_versions, 0)]:
                await store.forget_version(conn, model=oldest.model, version=oldest.version)
        else:
            await store.set_removed(conn, model=version.model, version=version.version, removed=False)

    async def _move(
        self,
        conn: AsyncConnection,
        actor: Caller,
        name: tuple[str, str],
        version: str,
        *,
        expected: str | None = None,
    ) -> AliasStep:
        model, alias = name
        registered = await store.read_all(conn)
        row = self._row(registered, model)
        self._check_there(row, version)
        wanted = wanted_aliases(row, registered)
        if alias in {known.version for known in row.all_versions()}:
            raise Conflict(f"{alias!r} is the name of a version of {model!r}, so no alias can bear it.")
        now = wanted[alias][0] if alias in wanted else ""
        if expected is not None and expected != now:
            raise Conflict(f"The alias {alias!r} means {now or 'nothing'!r} by now, not {expected!r}; look again.")
        if alias not in wanted and len(wanted) >= _MAX_ALIASES:
            raise Unprocessable(f"A model has at most {_MAX_ALIASES} aliases; take some back first.")
        steps = registered.steps.get(name, ())
        if steps and steps[0].version == version:
            return steps[0]
        return await self._step(conn, actor, name, version, steps)

    async def _step(
        self, conn: AsyncConnection, actor: Caller, name: tuple[str, str], version: str, steps: Sequence[AliasStep]
    ) -> AliasStep:
        number = steps[0].number + 1 if steps else 1
        step = AliasStep(*name, number, version, self._clock.now_us(), actor.key_id)
        await store.insert_step(conn, step=step, keep=self._settings.alias_history)
        return step

    def _row(self, registered: Registered, model: str) -> ModelSettings:
        row = next((row for row in overlay(self._base, registered) if row.id == model), None)
        if row is None:
            raise ModelNotFound(f"The model {model!r} does not exist; GET /v1/models lists those that do.")
        return row

    def _check_there(self, row: ModelSettings, version: str) -> None:
        there = [known.version for known in row.all_versions()]
        if version and version not in there:
            raise ModelNotFound(f"The model {row.id!r} has no version {version!r}; it has {', '.join(there)}.")

    def _check_removable(
        self, row: ModelSettings, registered: Registered, version: str, found: AddedVersion | None
    ) -> None:
        self._check_there(row, version)
        if found is None or found.removed:
            raise Conflict(f"{row.id}@{version} stands in the configuration: take it out there.")
        means = [alias for alias, wanted in wanted_aliases(row, registered).items() if wanted[0] == version]
        if means:
            raise Conflict(
                f"{', '.join(means)} of {row.id!r} still means version {version!r}: move it to another one first, "
                "or remove the model as a whole."
            )


def _looked_at(new: AddedVersion) -> AddedVersion:
    """In a thread: the version with the facts of a file that is here. Raises: BadRequest."""
    try:
        if is_remote(new.source):
            check_address(new.source)
            return new
        path = find_local(new.source)
    except SourceError as error:
        raise BadRequest(f"The source can't be used: {error}.", param="source") from None
    found = sha256_of(path)
    if new.sha256 is not None and new.sha256 != found:
        raise BadRequest(f"The file has the SHA-256 {found}, not the one that was given.", param="sha256")
    return replace(new, sha256=found, size_bytes=path.stat().st_size)


def _named(new: AddedVersion, row: ModelSettings | None, registered: Registered) -> AddedVersion:
    """With the next number for a name where there is none, and the model's kind."""
    if row is not None and not new.kind:
        new = replace(new, kind=row.kind)
    if new.version:
        return new
    taken = [version.version for version in registered.versions if version.model == new.model]
    taken += [] if row is None else [version.version for version in row.all_versions()]
    return replace(new, version=str(max((int(name) for name in taken if name.isdecimal()), default=0) + 1))


def _known(new: AddedVersion, row: ModelSettings | None, registered: Registered) -> AddedVersion | None:
    """The version of this name that there is, whether it was added or configured."""
    stored = registered.version(new.model, new.version)
    if stored is not None or row is None:
        return stored
    known = next((version for version in row.all_versions() if version.version == new.version), None)
    if known is None:
        return None
    return replace(new, source=known.source, sha256=known.sha256, options=known.options)


def _check_same(new: AddedVersion, known: AddedVersion) -> None:
    """Raises: Conflict where the same name would mean something else."""
    name = f"{new.model}@{new.version}"
    if new.sha256 is not None and known.sha256 is not None:
        same = new.sha256 == known.sha256
    else:
        same = new.source == known.source
    if not same:
        raise Conflict(
            f"{name} exists with another file (SHA-256 {known.sha256 or 'not known yet'}); versions never change: "
            "give this one another name.",
            param="version",
        )
    if dict(new.options) != dict(known.options):
        raise Conflict(f"{name} exists with other options; versions never change: give this one another name.")


def _first_line(error: ValueError) -> str:
    """What pydantic says of the first member that is wrong."""
    errors = getattr(error, "errors", None)
    if errors is None:
        return str(error)
    first = errors()[0]
    place = ".".join(str(part) for part in first["loc"])
    return f"{place}: {first['msg']}" if place else str(first["msg"])
