"""One version of an ONNX model as the corridor sees it."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import AsyncGenerator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from modelport.backends.batching.batcher import Batcher, Terms
from modelport.backends.batching.cost import CostModel
from modelport.backends.batching.figures import Figures
from modelport.backends.batching.work import Prepared, Runner
from modelport.backends.onnx.options import OnnxOptions, UnusableModel
from modelport.backends.protocol import Health, Status
from modelport.calls import Call, Delta, ModelKind, Operation
from modelport.errors import BadRequest, ModelLoading, Overloaded, Unavailable
from modelport.kit.clock import Clock, SystemClock
from modelport.settings import ModelSettings, VersionSettings

# Threads that decode pictures and tokenise, beside those that run the model.
_PREPARE_THREADS = 2
# Calls that were counted for the reservation and have not come to be run yet: their tokens are kept.
_COUNTED_CALLS = 1024
_LONGEST_RETRY_S = 30.0
_SHORTEST_RETRY_S = 0.1
# Within what time an answer is of use, where the configuration says nothing: far more than a call takes by itself.
_SLO_S = {ModelKind.TABULAR: 1.0, ModelKind.IMAGE: 3.0, ModelKind.EMBEDDING: 5.0}
_EVERY_KIND = frozenset({Operation.PREDICT, Operation.INFER})


class OnnxBackend:
    """Loads a file in the background and answers calls with it.

    `configured` are layers of options, later ones winning. Nothing blocks the event loop: pictures are decoded, texts
    tokenised and models run in threads of this backend's own, except for what takes less than a thread does.
    """

    kind = "onnx"

    def __init__(
        self,
        path: Path,
        model_kind: ModelKind,
        *,
        configured: tuple[Mapping[str, Any], ...] = (),
        clock: Clock | None = None,
    ) -> None:
        self._path = path
        self._model_kind = model_kind
        self._configured = configured
        self._operations = _EVERY_KIND | ({Operation.EMBEDDING} if model_kind is ModelKind.EMBEDDING else set())
        self._clock = clock or SystemClock()
        self._health = Health(Status.LOADING, "The model is waiting to be loaded.")
        self._loading: asyncio.Task[None] | None = None
        self._runner: Runner | None = None
        self._batcher: Batcher | None = None
        self._run_threads: ThreadPoolExecutor | None = None
        self._prepare_threads = ThreadPoolExecutor(_PREPARE_THREADS, "onnx-prepare")
        self._limit = OnnxOptions().queue
        self._inside = 0
        self._empty = asyncio.Event()
        self._empty.set()
        self._counted: OrderedDict[str, Prepared] = OrderedDict()

    async def start(self) -> None:
        self._health = Health(Status.LOADING, f"Loading {self._path.name}.")
        self._loading = asyncio.create_task(self._load())

    async def close(self) -> None:
        if self._loading is not None:
            self._loading.cancel()
        if self._batcher is not None:
            self._batcher.close()
        self._runner = self._batcher = None
        self._health = Health(Status.FAILED, "The model is shut down.")
        # What is being computed ends in its own time, and its answers are still rendered.
        if self._run_threads is not None:
            await asyncio.to_thread(self._run_threads.shutdown)
        await self._empty.wait()
        await asyncio.to_thread(self._prepare_threads.shutdown)

    def health(self) -> Health:
        return self._health

    def info(self) -> dict[str, Any]:
        """Facts about the loaded model for `/v1/models/{id}`; empty while it is not loaded."""
        if self._runner is None or self._batcher is None:
            return {}
        return self._runner.info() | {"batching": self._batcher.told()}

    def figures(self) -> Figures | None:
        """What its batches are counted in, once it is loaded."""
        return self._batcher.figures if self._batcher is not None else None

    async def count_input(self, call: Call, *, model: str) -> int:
        runner, batcher = self._ready(call)
        if not batcher.idle:
            # Here nothing is reserved or recorded yet, so that turning a flood away costs little.
            batcher.admit(call.caller.organization_id, runner.weigh(call), deadline_s=call.deadline_s)
        if self._model_kind is not ModelKind.EMBEDDING:
            return 0
        prepared = await self._prepare(runner, call)
        self._counted[call.id] = prepared
        while len(self._counted) > _COUNTED_CALLS:
            self._counted.popitem(last=False)
        return prepared.usage.input_tokens

    async def stream(self, call: Call, *, model: str, max_output_tokens: int | None) -> AsyncGenerator[Delta]:
        runner, batcher = self._ready(call)
        prepared = self._counted.pop(call.id, None) if self._counted else None
        if batcher.idle:
            if prepared is None and runner.is_light(call):
                prepared = runner.prepare(call)
            if prepared is not None and not prepared.heavy:
                results = batcher.at_once(prepared)
                if results is not None:
                    yield runner.render(call, prepared, results)
                    return
        yield await self._in_turn(runner, batcher, call, prepared)

    async def _in_turn(self, runner: Runner, batcher: Batcher, call: Call, prepared: Prepared | None) -> Delta:
        """The answer of a call that waits for its turn."""
        if self._inside >= self._limit:
            raise self._overloaded(call, batcher)
        cost = runner.weigh(call)
        turn = batcher.admit(call.caller.organization_id, cost, deadline_s=call.deadline_s)
        self._inside += 1
        self._empty.clear()
        try:
            if prepared is None:
                with batcher.on_its_way(turn, cost):
                    prepared = await self._prepare(runner, call)
            results = await batcher.submit(turn, prepared)
            return await self._render(runner, call, prepared, results)
        finally:
            self._inside -= 1
            if not self._inside:
                self._empty.set()

    def _ready(self, call: Call) -> tuple[Runner, Batcher]:
        if self._runner is None or self._batcher is None:
            if self._health.status is Status.LOADING:
                raise ModelLoading(f"The model {call.model!r} is still loading.")
            raise Unavailable(
                f"The model {call.model!r} could not be loaded; its operator can see why.",
                internal=self._health.detail,
            )
        if call.operation not in self._operations:
            raise BadRequest(f"The model {call.model!r} can't do this: its kind is {self._model_kind}.", param="model")
        return self._runner, self._batcher

    def _overloaded(self, call: Call, batcher: Batcher) -> Overloaded:
        outlook = batcher.outlook(call.caller.organization_id, 1, self._clock.monotonic_s())
        wait_s = min(max(outlook.wait_s, _SHORTEST_RETRY_S), _LONGEST_RETRY_S)
        return Overloaded(f"{self._limit} calls are waiting for this model already.", retry_after_s=round(wait_s, 2))

    async def _prepare(self, runner: Runner, call: Call) -> Prepared:
        if runner.is_light(call):
            return runner.prepare(call)
        return await asyncio.get_running_loop().run_in_executor(self._prepare_threads, runner.prepare, call)

    async def _render(self, runner: Runner, call: Call, prepared: Prepared, results: list[Any]) -> Delta:
        if not prepared.heavy:
            return runner.render(call, prepared, results)
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._prepare_threads, runner.render, call, prepared, results)

    async def _load(self) -> None:
        loaded = asyncio.get_running_loop().run_in_executor(
            self._prepare_threads, _open, self._path, self._model_kind, self._configured, self._clock
        )
        await asyncio.wait({loaded})
        # A bad file may break the engine or a library in ways of its own; it must not look as if it were loading.
        error = loaded.exception()
        if error is not None:
            known = isinstance(error, UnusableModel)
            self._health = Health(Status.FAILED, str(error) if known else f"{self._path.name}: {error!r}")
            return
        runner, options, cost = loaded.result()
        self._limit = options.queue
        slots = _slots(options)
        self._run_threads = ThreadPoolExecutor(slots, "onnx-run")
        slo_s = options.slo_ms / 1000 if options.slo_ms else _SLO_S.get(self._model_kind, 1.0)
        terms = Terms(runner.packing, slots, slo_s)
        self._runner = runner
        self._batcher = Batcher(runner.run, self._run_threads, self._clock, terms=terms, cost=cost)
        self._health = Health(Status.READY)


def build_onnx(
    model: ModelSettings, version: VersionSettings, path: Path, *, clock: Clock | None = None
) -> OnnxBackend:
    """The backend of one version, whose file lies at `path`. Loads nothing yet; never raises for a bad model."""
    layers = (model.options, version.options)
    return OnnxBackend(path, ModelKind(model.kind), configured=layers, clock=clock)


def _open(
    path: Path, model_kind: ModelKind, configured: tuple[Mapping[str, Any], ...], clock: Clock
) -> tuple[Runner, OnnxOptions, CostModel]:
    """In a thread: the model, warmed up, its options, and what its batches cost. Raises: UnusableModel."""
    # The engine and its companions take about 0.2 s to import: only a process that has such a model pays for it.
    from modelport.backends.onnx.served import open_model

    model, options = open_model(path, model_kind, configured)
    return model, options, model.warm(clock)


def _slots(options: OnnxOptions) -> int:
    from modelport.backends.onnx.engine import slots_within

    return slots_within(options.slots, options.threads)
