"""One version of an ONNX model as the corridor sees it."""

from __future__ import annotations

import asyncio
import functools
import json
from collections import OrderedDict
from collections.abc import AsyncGenerator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

from modelport.backends.onnx.batching import Batcher
from modelport.backends.onnx.options import OnnxOptions, UnusableModel, read_options
from modelport.backends.onnx.runner import Prepared, Runner
from modelport.backends.protocol import Health, Status
from modelport.calls import Call, Delta, ModelKind, Operation
from modelport.errors import BadRequest, ModelLoading, Overloaded, Unavailable
from modelport.kit.clock import Clock, SystemClock
from modelport.settings import ModelSettings, VersionSettings

if TYPE_CHECKING:
    from modelport.backends.onnx.engine import Engine

# Threads that decode pictures and tokenise, beside the one that runs the model.
_PREPARE_THREADS = 2
# Calls that were counted for the reservation and have not come to be run yet: their tokens are kept.
_COUNTED_CALLS = 1024
_LONGEST_RETRY_S = 30.0
_SHORTEST_RETRY_S = 0.1


class OnnxBackend:
    """Loads a file in the background and answers calls with it.

    `configured` are layers of options, later ones winning. Nothing blocks the event loop: pictures are decoded, texts
    tokenised and models run in threads of this backend's own.
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
        self._clock = clock or SystemClock()
        self._health = Health(Status.LOADING, "The model is waiting to be loaded.")
        self._loading: asyncio.Task[None] | None = None
        self._runner: Runner | None = None
        self._batcher: Batcher | None = None
        self._run_thread = ThreadPoolExecutor(1, "onnx-run")
        self._prepare_threads = ThreadPoolExecutor(_PREPARE_THREADS, "onnx-prepare")
        self._limit = OnnxOptions().queue
        self._inside = 0
        self._counted: OrderedDict[str, Prepared] = OrderedDict()

    async def start(self) -> None:
        self._health = Health(Status.LOADING, f"Loading {self._path.name}.")
        self._loading = asyncio.create_task(self._load())

    async def close(self) -> None:
        if self._loading is not None:
            self._loading.cancel()
        if self._batcher is not None:
            self._batcher.close()
        for threads in (self._prepare_threads, self._run_thread):
            threads.shutdown(wait=False, cancel_futures=True)
        await asyncio.to_thread(self._run_thread.shutdown)
        self._runner = self._batcher = None
        self._health = Health(Status.FAILED, "The model is shut down.")

    def health(self) -> Health:
        return self._health

    def info(self) -> dict[str, Any]:
        """Facts about the loaded model for `/v1/models/{id}`; empty while it is not loaded."""
        return self._runner.info() if self._runner is not None else {}

    async def count_input(self, call: Call, *, model: str) -> int:
        if call.operation is not Operation.EMBEDDING:
            return 0
        prepared = await self._prepare(self._ready(call)[0], call)
        self._counted[call.id] = prepared
        while len(self._counted) > _COUNTED_CALLS:
            self._counted.popitem(last=False)
        return prepared.usage.input_tokens

    async def stream(self, call: Call, *, model: str, max_output_tokens: int | None) -> AsyncGenerator[Delta]:
        runner, batcher = self._ready(call)
        if self._inside >= self._limit:
            raise self._overloaded(batcher)
        self._inside += 1
        try:
            prepared = self._counted.pop(call.id, None) or await self._prepare(runner, call)
            answer = await batcher.submit(call, prepared)
        finally:
            self._inside -= 1
        yield answer

    def _ready(self, call: Call) -> tuple[Runner, Batcher]:
        if self._runner is None or self._batcher is None:
            if self._health.status is Status.LOADING:
                raise ModelLoading(f"The model {call.model!r} is still loading.")
            raise Unavailable(
                f"The model {call.model!r} could not be loaded; its operator can see why.",
                internal=self._health.detail,
            )
        wanted = Operation.EMBEDDING if self._model_kind is ModelKind.EMBEDDING else Operation.PREDICT
        if call.operation is not wanted:
            raise BadRequest(f"The model {call.model!r} can't do this: its kind is {self._model_kind}.", param="model")
        return self._runner, self._batcher

    def _overloaded(self, batcher: Batcher) -> Overloaded:
        wait_s = min(max(batcher.backlog_s(), _SHORTEST_RETRY_S), _LONGEST_RETRY_S)
        return Overloaded(f"{self._limit} calls are waiting for this model already.", retry_after_s=round(wait_s, 2))

    async def _prepare(self, runner: Runner, call: Call) -> Prepared:
        if runner.is_light(call):
            return runner.prepare(call)
        return await asyncio.get_running_loop().run_in_executor(self._prepare_threads, runner.prepare, call)

    async def _load(self) -> None:
        build = functools.partial(load_runner, self._path, self._model_kind, self._configured)
        loaded = asyncio.get_running_loop().run_in_executor(self._run_thread, build)
        await asyncio.wait({loaded})
        # A bad file may break the engine or a library in ways of its own; it must not look as if it were loading.
        error = loaded.exception()
        if error is not None:
            known = isinstance(error, UnusableModel)
            self._health = Health(Status.FAILED, str(error) if known else f"{self._path.name}: {error!r}")
            return
        runner, options = loaded.result()
        self._limit = options.queue
        self._runner = runner
        self._batcher = Batcher(runner, self._run_thread, self._clock)
        self._health = Health(Status.READY)


def build_onnx(
    model: ModelSettings, version: VersionSettings, path: Path, *, clock: Clock | None = None
) -> OnnxBackend:
    """The backend of one version, whose file lies at `path`. Loads nothing yet; never raises for a bad model."""
    layers = (model.options, version.options)
    return OnnxBackend(path, ModelKind(model.kind), configured=layers, clock=clock)


def load_runner(
    path: Path, model_kind: ModelKind, configured: tuple[Mapping[str, Any], ...]
) -> tuple[Runner, OnnxOptions]:
    """Open a file and warm it up. Blocks. Raises: UnusableModel."""
    # The engine and its companions take about 0.2 s to import: only a process that has such a model pays for it.
    from modelport.backends.onnx.engine import open_engine

    threads = read_options({}, *configured).threads
    engine = open_engine(path, threads=threads)
    options = read_options(engine.metadata, *configured)
    # Building a runner runs the model once, which warms it up.
    return _runner(engine, model_kind, options), options


def _runner(engine: Engine, model_kind: ModelKind, options: OnnxOptions) -> Runner:
    if model_kind is ModelKind.EMBEDDING:
        from modelport.backends.onnx.embeddings import EmbeddingRunner

        return EmbeddingRunner(engine, options)
    if model_kind is ModelKind.IMAGE:
        from modelport.backends.onnx.images import ImageRunner

        return ImageRunner(engine, options, read_labels(options.labels))
    if model_kind is ModelKind.TABULAR:
        from modelport.backends.onnx.tabular import TabularRunner

        return TabularRunner(engine, options, read_labels(options.labels))
    raise UnusableModel(f"the onnx backend serves images, embeddings and tabular data, not {model_kind}")


def read_labels(labels: list[str] | str) -> list[str]:
    """Labels from the configuration: a list, or a file with a JSON list or one label in a line."""
    if isinstance(labels, list):
        return labels
    try:
        text = Path(labels).expanduser().read_text(encoding="utf-8")
        found = json.loads(text) if text.lstrip().startswith("[") else text.splitlines()
    except (OSError, ValueError) as error:
        raise UnusableModel(f"the labels can't be read from {labels}") from error
    return [str(label) for label in found]
