"""A local model whose file or engine is still on its way: it says so, and becomes the real backend when it is there."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable

from modelport.backends.batching.figures import Figures
from modelport.backends.protocol import Backend, Health, Status
from modelport.calls import Call, Delta
from modelport.catalog.handover import Place, Places
from modelport.errors import ModelLoading, Unavailable

# How often a worker looks whether a file has arrived; a stat a time, and only until it has.
_LOOK_S = 0.1


class PlacedBackend:
    """Delegates to the backend that `build` makes once the supervisor has placed the version."""

    def __init__(
        self, kind: str, *, model: str, version: str, places: Places, build: Callable[[Place], Backend]
    ) -> None:
        self.kind = kind
        self._model, self._version = model, version
        self._places = places
        self._build = build
        self._real: Backend | None = None
        self._waiting: asyncio.Task[None] | None = None

    async def start(self) -> None:
        self._waiting = asyncio.create_task(self._wait())

    async def close(self) -> None:
        if self._waiting is not None:
            self._waiting.cancel()
        if self._real is not None:
            await self._real.close()

    def health(self) -> Health:
        if self._real is not None:
            return self._real.health()
        place = self._place()
        if place is None:
            return Health(Status.LOADING, "The model is being fetched.")
        return Health(Status.FAILED if place.status is Status.FAILED else Status.LOADING, place.detail)

    def info(self) -> dict[str, object]:
        """What the real backend tells of its model; nothing while it is not there."""
        tell = getattr(self._real, "info", None)
        return dict(tell()) if tell is not None else {}

    def figures(self) -> Figures | None:
        """What the real backend's batches are counted in, where it is there and has any."""
        tell = getattr(self._real, "figures", None)
        return tell() if tell is not None else None

    async def count_input(self, call: Call, *, model: str) -> int:
        return await self._backend().count_input(call, model=model)

    def stream(self, call: Call, *, model: str, max_output_tokens: int | None) -> AsyncGenerator[Delta]:
        return self._backend().stream(call, model=model, max_output_tokens=max_output_tokens)

    def _backend(self) -> Backend:
        if self._real is not None:
            return self._real
        health = self.health()
        if health.status is Status.FAILED:
            raise Unavailable(f"The model {self._model!r} could not be loaded; its operator can see why.")
        raise ModelLoading(f"The model {self._model!r} is still loading: {health.detail}".rstrip(": "))

    def _place(self) -> Place | None:
        return self._places.find(self._model, self._version)

    async def _wait(self) -> None:
        while self._real is None:
            place = self._place()
            if place is not None and (place.path or place.socket) and place.status is not Status.FAILED:
                real = self._build(place)
                await real.start()
                self._real = real
            else:
                await asyncio.sleep(_LOOK_S)
