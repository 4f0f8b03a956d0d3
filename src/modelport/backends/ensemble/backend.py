"""An ensemble as the corridor sees it: one model, one call, one price; its members are asked without being billed."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from dataclasses import replace
from typing import Any

import msgspec

from modelport.backends.ensemble.combine import Said, Uncombinable, mean, vote
from modelport.backends.ensemble.options import EnsembleOptions
from modelport.backends.protocol import Health, Status, Target
from modelport.calls import Call, Delta, Operation, Usage
from modelport.errors import BadRequest, ModelNotFound, ModelportError, UpstreamFailed

Find = Callable[[str], Target]
"""Who answers for a model of this name now. Raises: ModelNotFound."""
_TOP_K = 5


class EnsembleBackend:
    """Holds nothing of its own: members are looked up for every call, so they may change while it serves."""

    kind = "ensemble"

    def __init__(self, options: EnsembleOptions, *, find: Find) -> None:
        self._options = options
        self._find = find

    async def start(self) -> None:
        """Its members are started by the catalogue."""

    async def close(self) -> None:
        """Nothing to stop."""

    def health(self) -> Health:
        """Ready as soon as enough members are."""
        states = [self._state(name) for name in self._options.members]
        ready = sum(state.status is Status.READY for state in states)
        if ready >= self._options.least:
            return Health(Status.READY)
        least, loading = self._options.least, any(state.status is Status.LOADING for state in states)
        found = next(state for state in states if state.status is not Status.READY)
        detail = f"{ready} of its members are ready, it needs {least}: {found.detail}".rstrip(": ")
        return Health(Status.LOADING if loading else Status.FAILED, detail)

    def info(self) -> dict[str, Any]:
        """What its first member takes and gives, and who the members are."""
        told: dict[str, Any] = {"members": self._options.members, "combine": self._options.combine}
        try:
            tell = getattr(self._find(self._options.members[0]).backend, "info", None)
        except ModelNotFound:
            return told
        first = dict(tell()) if tell is not None else {}
        return {name: first[name] for name in ("num_labels", "input_schema", "output_schema") if name in first} | told

    async def count_input(self, call: Call, *, model: str) -> int:
        if call.operation is Operation.PREDICT:
            return 0
        target = self._find(self._options.members[0])
        return await target.backend.count_input(_asked(call, 0), model=target.upstream_model)

    async def stream(self, call: Call, *, model: str, max_output_tokens: int | None) -> AsyncGenerator[Delta]:
        if call.operation is Operation.PREDICT:
            yield await self._predict(call)
        elif self._options.combine == "first_success" and call.operation is not Operation.INFER:
            async with aclosing(self._first(call, max_output_tokens)) as deltas:
                async for delta in deltas:
                    yield delta
        else:
            raise BadRequest(
                f"The model {call.model!r} is an ensemble that combines predictions; call it at /v1/predict.",
                param="model",
            )

    def _state(self, name: str) -> Health:
        try:
            return self._find(name).backend.health()
        except ModelNotFound:
            return Health(Status.FAILED, f"there is no model {name!r}")

    async def _predict(self, call: Call) -> Delta:
        """One prediction for each input. Members that are not needed any more are stopped."""
        _top_k(call)
        heard = await self._hear(call)
        inputs: list[Any] = call.request.inputs
        values = [self._combined(call, heard, place) for place in range(len(inputs))]
        failure = next((value for value in values if isinstance(value, ModelportError)), None)
        if failure is not None and not call.partial:
            raise failure
        images = max(usage.images for _, _, usage in heard)
        return Delta(whole=True, value=values, usage=Usage(images=images))

    async def _hear(self, call: Call) -> list[tuple[float, list[Any], Usage]]:
        """The weight, predictions and usage of every member that answered.

        Raises: the first member's error where so many failed that what is required can't be had.
        """
        options = self._options
        tasks = {asyncio.create_task(self._ask(call, place)): place for place in range(len(options.members))}
        heard: dict[int, tuple[list[Any], Usage]] = {}
        errors: list[ModelportError] = []
        waiting = set(tasks)
        try:
            while waiting:
                done, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
                for task in sorted(done, key=lambda task: tasks[task]):
                    error = task.exception()
                    if error is None:
                        heard[tasks[task]] = task.result()
                    elif isinstance(error, ModelportError):
                        errors.append(error)
                    else:
                        raise error
                if options.combine == "first_success" and heard:
                    break
                if len(options.members) - len(errors) < options.least:
                    raise errors[0]
        finally:
            for task in waiting:
                task.cancel()
            if waiting:
                await asyncio.wait(waiting)
        return [(options.weight(place), *heard[place]) for place in sorted(heard)]

    async def _ask(self, call: Call, place: int) -> tuple[list[Any], Usage]:
        target = self._find(self._options.members[place])
        asked = _asked(call, place, labels=_labels(target) if self._options.combine != "first_success" else None)
        stream = target.backend.stream(asked, model=target.upstream_model, max_output_tokens=None)
        value, usage = [], Usage()
        async with aclosing(stream) as deltas:
            async for delta in deltas:
                value, usage = delta.value, delta.usage or usage
        return value, usage

    def _combined(self, call: Call, heard: Sequence[tuple[float, list[Any], Usage]], place: int) -> Any:
        """The prediction for one input, or its error."""
        said = [Said(values[place], weight) for weight, values, _ in heard]
        good = [one for one in said if not isinstance(one.prediction, ModelportError)]
        if len(good) < self._options.least:
            return next(one.prediction for one in said if isinstance(one.prediction, ModelportError))
        if self._options.combine == "first_success":
            return good[0].prediction
        combine = vote if self._options.combine == "vote" else mean
        try:
            return combine(good, top_k=_top_k(call))
        except Uncombinable as error:
            return UpstreamFailed(f"The ensemble can't be combined: {error}.", param=f"inputs[{place}]")

    async def _first(self, call: Call, max_output_tokens: int | None) -> AsyncGenerator[Delta]:
        """The deltas of the member that is the first to begin; the others are stopped."""
        streams: list[AsyncGenerator[Delta]] = []
        for place, name in enumerate(self._options.members):
            target = self._find(name)
            asked = _asked(call, place, model=name)
            stream = target.backend.stream(asked, model=target.upstream_model, max_output_tokens=max_output_tokens)
            streams.append(stream)
        opening, winner = await _race(streams)
        async with aclosing(winner) as deltas:
            for delta in opening:
                yield delta
            async for delta in deltas:
                yield delta


async def _race(streams: Sequence[AsyncGenerator[Delta]]) -> tuple[list[Delta], AsyncGenerator[Delta]]:
    """The pieces of whoever begins first, and the rest of them. The others are stopped. Raises: ModelportError."""
    begun = {asyncio.create_task(_begin(stream)): stream for stream in streams}
    winner: AsyncGenerator[Delta] | None = None
    try:
        opening, winner = await _winner(begun)
        return opening, winner
    finally:
        for task in begun:
            task.cancel()
        await asyncio.wait(begun)
        for stream in streams:
            if stream is not winner:
                await stream.aclose()


async def _begin(stream: AsyncGenerator[Delta]) -> list[Delta]:
    """A stream's pieces up to the first with output in it."""
    opening: list[Delta] = []
    async for delta in stream:
        opening.append(delta)
        if delta.timed:
            break
    return opening


async def _winner(
    begun: dict[asyncio.Task[list[Delta]], AsyncGenerator[Delta]],
) -> tuple[list[Delta], AsyncGenerator[Delta]]:
    """Who begins first, and with what. Raises: the last error when all fail."""
    waiting = set(begun)
    error: BaseException | None = None
    while waiting:
        done, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            error = task.exception()
            if error is None:
                return task.result(), begun[task]
            if not isinstance(error, ModelportError):
                raise error
    assert error is not None
    raise error


def _asked(call: Call, place: int, *, model: str = "", labels: int | None = None) -> Call:
    """The call as a member gets it: with an id of its own, failing input by input, and telling all its labels."""
    request: Any = call.request
    if call.operation is Operation.PREDICT:
        options = request.options if labels is None else request.options | {"top_k": labels}
        request = msgspec.structs.replace(request, options=options)
    return replace(call, id=f"{call.id}.{place}", request=request, model=model or call.model, partial=True)


def _labels(target: Target) -> int | None:
    """How many labels a model of pictures has; None where predictions have all of them anyway."""
    tell = getattr(target.backend, "info", None)
    told = dict(tell()) if tell is not None else {}
    ranked = told.get("output_schema", {}).get("type") == "array"
    return told.get("num_labels") if ranked else None


def _top_k(call: Call) -> int:
    asked: Any = call.request.options.get("top_k", _TOP_K)
    if type(asked) is not int or asked < 1:
        raise BadRequest("top_k is a whole number from 1 on.", param="options.top_k")
    return asked
