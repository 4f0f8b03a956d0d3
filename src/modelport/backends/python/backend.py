"""A model that is a Python class, as the corridor sees it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from modelport.backends.batching import Batcher, Packing, Prepared
from modelport.backends.batching.batcher import Terms
from modelport.backends.onnx.runner import each_input, with_failed
from modelport.backends.protocol import Health, Status
from modelport.backends.python.frames import Outcome, pack, unpack
from modelport.backends.python.options import PythonOptions, UnusablePython, read_options
from modelport.backends.python.processes import Processes
from modelport.calls import Call, Delta, Operation, Usage
from modelport.errors import BadRequest, ModelLoading, ModelportError, Overloaded, Unavailable, UpstreamFailed
from modelport.kit.clock import Clock, SystemClock
from modelport.settings import ModelSettings, VersionSettings

_SLO_S = 30.0


class PythonBackend:
    """Loads a file in processes of its own and answers calls with it. Nothing of it runs in the gateway."""

    kind = "python"

    def __init__(
        self, path: Path, *, name: str, configured: tuple[Mapping[str, Any], ...] = (), clock: Clock | None = None
    ) -> None:
        self._path = path
        self._name = name
        self._configured = configured
        self._clock = clock or SystemClock()
        self._options = PythonOptions()
        self._health = Health(Status.LOADING, "The model is waiting to be loaded.")
        self._info: dict[str, Any] = {}
        self._processes: Processes | None = None
        self._batcher: Batcher | None = None
        self._threads: ThreadPoolExecutor | None = None
        self._loading: asyncio.Task[None] | None = None
        self._inside = 0

    async def start(self) -> None:
        self._loading = asyncio.create_task(self._load())

    async def close(self) -> None:
        if self._batcher is not None:
            self._batcher.close()
        if self._processes is not None:
            await asyncio.to_thread(self._processes.close)
        if self._loading is not None:
            self._loading.cancel()
        if self._threads is not None:
            await asyncio.to_thread(self._threads.shutdown)
        self._health = Health(Status.FAILED, "The model is shut down.")

    def health(self) -> Health:
        loaded = self._health.status is Status.READY and self._processes is not None
        return self._processes.health if loaded and self._processes is not None else self._health

    def info(self) -> dict[str, Any]:
        """Facts about the loaded model for `/v1/models/{id}`; empty while it is not loaded."""
        if self._batcher is None or self._processes is None:
            return {}
        return self._info | {"batching": self._batcher.told(), "restarts": self._processes.restarts}

    async def count_input(self, call: Call, *, model: str) -> int:
        return 0

    async def stream(self, call: Call, *, model: str, max_output_tokens: int | None) -> AsyncGenerator[Delta]:
        batcher = self._ready(call)
        inputs: list[Any] = call.request.inputs
        if call.request.options:
            raise BadRequest("The model has no options.", param="options")
        if len(inputs) > self._options.max_inputs:
            raise BadRequest(
                f"{len(inputs)} inputs are too many: at most {self._options.max_inputs} in one call.", param="inputs"
            )
        if self._inside >= self._options.queue:
            raise Overloaded(f"{self._inside} calls are waiting for this model already.", retry_after_s=1.0)
        turn = batcher.admit(call.caller.organization_id, len(inputs), deadline_s=call.deadline_s)
        self._inside += 1
        try:
            rows, failed = each_input(call, inputs, _packed)
            blocks = await batcher.submit(turn, Prepared(rows, Usage()))
        finally:
            self._inside -= 1
        outcomes = [outcome for block in blocks for outcome in block]
        places = [place for place in range(len(inputs)) if place not in failed]
        values = _values(zip(places, outcomes, strict=True), partial=call.partial)
        yield Delta(whole=True, value=with_failed(values, failed), usage=Usage())

    def _ready(self, call: Call) -> Batcher:
        if call.operation is not Operation.PREDICT:
            raise BadRequest(f"The model {call.model!r} is called at /v1/predict and /v2/predict alone.", param="model")
        if self._batcher is not None:
            return self._batcher
        if self._health.status is Status.LOADING:
            raise ModelLoading(f"The model {call.model!r} is still loading.")
        raise Unavailable(
            f"The model {call.model!r} could not be loaded; its operator can see why.", internal=self._health.detail
        )

    async def _load(self) -> None:
        try:
            options = self._options = read_options(*self._configured)
            processes = self._processes = Processes(self._path, options, name=self._name)
            self._health = processes.health
            self._threads = ThreadPoolExecutor(options.processes, "python-run")
            self._info = await asyncio.get_running_loop().run_in_executor(self._threads, processes.open)
        except UnusablePython as error:
            self._health = Health(Status.FAILED, str(error))
            return
        slo_s = _SLO_S if options.slo_ms is None else options.slo_ms / 1000
        terms = Terms(Packing(options.max_batch), options.processes, slo_s)
        self._batcher = Batcher(processes.run, self._threads, self._clock, terms=terms)
        self._health = Health(Status.READY)


def build_python(model: ModelSettings, version: VersionSettings, path: Path) -> PythonBackend:
    """The backend of one version, whose file lies at `path`. Loads nothing yet; never raises for a bad model."""
    return PythonBackend(path, name=f"{model.id}@{version.version}", configured=(model.options, version.options))


def _packed(value: Any, param: str) -> bytes:
    try:
        return pack(value)
    except ValueError as error:
        raise BadRequest(f"{param} can't be given to the model: {error}.", param=param) from None


def _values(outcomes: Iterable[tuple[int, Outcome]], *, partial: bool) -> list[Any]:
    """The value of each input by its place, or its error. Raises: the first error, where the call is not partial."""
    values: list[Any] = []
    for place, outcome in outcomes:
        error = _error(outcome, f"inputs[{place}]")
        if error is not None and not partial:
            raise error
        values.append(unpack(outcome.value) if error is None else error)
    return values


def _error(outcome: Outcome, param: str) -> ModelportError | None:
    if outcome.refused is not None:
        return BadRequest(f"{param}: {outcome.refused}", param=param)
    if outcome.broken is not None:
        return UpstreamFailed("The model failed on this input.", param=param, internal=outcome.broken)
    return None
