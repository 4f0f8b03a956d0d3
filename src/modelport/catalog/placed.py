"""A local model whose file or engine is still on its way: it says so, and becomes the real backend when it is there."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from weakref import WeakSet

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
        # Answers that are being read. They leave by themselves when their readers let go of them.
        self._open: WeakSet[AsyncGenerator[Delta]] = WeakSet()

    async def start(self) -> None:
        self._waiting = asyncio.create_task(self._wait())

    async def close(self) -> None:
        if self._waiting is not None:
            self._waiting.cancel()
        if self._real is not None:
            await self._real.close()

    async def retire(self, *, drain_s: float, most_s: float) -> None:
        """Close it once nobody can ask it any more: after `drain_s`, within which every call that was planned for it
        has begun, and after its last answer; after `most_s` in any case."""
        loop = asyncio.get_running_loop()
        give_up_s = loop.time() + most_s
        await asyncio.sleep(drain_s)
        # Readers that let go say nothing of it, so it is looked.
        while self._open and loop.time() < give_up_s:  # noqa: ASYNC110
            await asyncio.sleep(_LOOK_S)
        await self.close()

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

    def is_coming(self) -> bool:
        """Whether its file is here and it will be able to answer in a moment."""
        if self._real is not None:
            return self._real.health().status is Status.LOADING
        place = self._place()
        return place is not None and place.status is Status.READY

    def progress(self) -> tuple[int, int]:
        """Bytes of its file that have come, of how many; zeros where nothing is on its way."""
        place = None if self._real is not None else self._place()
        return (0, 0) if place is None else (place.done_bytes, place.total_bytes)

    async def count_input(self, call: Call, *, model: str) -> int:
        return await self._backend().count_input(call, model=model)

    def stream(self, call: Call, *, model: str, max_output_tokens: int | None) -> AsyncGenerator[Delta]:
        answer = self._backend().stream(call, model=model, max_output_tokens=max_output_tokens)
        self._open.add(answer)
        return answer

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
