"""The catalogue in use: lookup by name, state of each model, start and stop of the backends."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from typing import Any

from modelport.backends.batching.figures import Figures
from modelport.backends.protocol import Backend, Health, Status
from modelport.calls import Caller
from modelport.catalog.model import Model, Version
from modelport.catalog.rules import resolve
from modelport.errors import ModelNotFound

_LOOK_S = 0.02
# Of models that are gone: what calls of theirs that are still under way need.
_MOST_GONE = 1_000


class Catalog:
    """The models that this process serves. Read on every call.

    They are exchanged as a whole, between two steps of the event loop: a call sees one state of them, or the next.
    """

    def __init__(self, models: Iterable[Model]) -> None:
        self._models: Mapping[str, Model] = {model.id: model for model in models}
        self._gone: dict[str, Model] = {}
        self._listeners: list[Callable[[], None]] = []

    @property
    def models(self) -> Mapping[str, Model]:
        return self._models

    def swap(self, models: Iterable[Model]) -> None:
        """Serve these from now on. Their backends are started; who listens is told before anybody else runs."""
        fresh = {model.id: model for model in models}
        for id_, model in self._models.items():
            if id_ not in fresh:
                self._gone[id_] = model
        while len(self._gone) > _MOST_GONE:
            del self._gone[next(iter(self._gone))]
        self._models = fresh
        for listener in self._listeners:
            listener()

    def on_swap(self, listener: Callable[[], None]) -> None:
        """Have `listener` called after each exchange, at once."""
        self._listeners.append(listener)

    def known(self, id_: str) -> Model:
        """The model of this id, also one that is gone and that a call under way was planned for."""
        return self._models.get(id_) or self._gone[id_]

    def get(self, name: str, *, version: str | None = None) -> tuple[Model, Version]:
        """The model and version a caller's `name` means. Raises: ModelNotFound."""
        return resolve(self._models, name, version=version)

    def list_for(self, caller: Caller) -> list[Model]:
        """The models this caller may use, in the order of the configuration."""
        return [model for model in self._models.values() if caller.may_use(model.id)]

    def get_for(self, caller: Caller, name: str) -> Model:
        """Raises: ModelNotFound, also for a model the caller may not know of."""
        model, _ = self.get(name)
        if not caller.may_use(model.id):
            raise ModelNotFound(f"The model {name!r} does not exist.", param="model")
        return model

    def backends(self) -> list[Backend]:
        """Every backend once."""
        seen: dict[int, Backend] = {}
        for model in self._models.values():
            for version in model.versions.values():
                for target in version.targets:
                    seen[id(target.backend)] = target.backend
        return list(seen.values())

    def batch_figures(self) -> Iterator[tuple[str, Figures]]:
        """What the batches of every loaded local model are counted in, by the model's id."""
        for model in self._models.values():
            for version in model.versions.values():
                for target in version.targets:
                    tell = getattr(target.backend, "figures", None)
                    figures = tell() if tell is not None else None
                    if figures is not None:
                        yield model.id, figures

    async def loaded(self, *, most_s: float) -> None:
        """Return when every version whose file is here can answer or has failed, at the latest after `most_s`."""
        coming = [tell for backend in self.backends() if (tell := getattr(backend, "is_coming", None)) is not None]
        with suppress(TimeoutError):
            async with asyncio.timeout(most_s):
                # Backends load in threads and processes, each in its own way.
                while any(tell() for tell in coming):  # noqa: ASYNC110
                    await asyncio.sleep(_LOOK_S)

    async def start(self) -> None:
        for backend in self.backends():
            await backend.start()

    async def close(self) -> None:
        for backend in self.backends():
            await backend.close()


def version_health(version: Version) -> Health:
    """The best state among the version's targets: it is ready as soon as one of them is."""
    states = [target.backend.health() for target in version.targets]
    for status in (Status.READY, Status.LOADING):
        for health in states:
            if health.status is status:
                return health
    return states[0]


def model_info(model: Model) -> dict[str, Any]:
    """What the backend of the version that `latest` means knows of the model, where it tells."""
    tell = getattr(model.versions[model.aliases["latest"]].targets[0].backend, "info", None)
    return dict(tell()) if tell is not None else {}


def model_health(model: Model) -> Health:
    """The state of the version that `latest` means."""
    return version_health(model.versions[model.aliases["latest"]])
