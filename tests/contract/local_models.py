"""The default local models and calls to them, for tests that run real models."""

from __future__ import annotations

import importlib.util
import itertools
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from modelport.backends.onnx import OnnxBackend, build_onnx
from modelport.backends.protocol import Status
from modelport.calls import Call, Caller, Delta, ModelKind, Operation, Tensor
from modelport.catalog.defaults import default_models
from modelport.catalog.sources import prepared_dir
from modelport.requests import EmbeddingRequest, InferRequest, PredictRequest
from modelport.settings import ModelSettings
from tests.waiting import wait_until

CALLER = Caller("org_1", "proj_1", "key_1", "live", frozenset({"inference"}), "free")
_numbers = itertools.count()


def sample(package: str, path: str) -> Path:
    """A file that comes with a package, such as a photograph of scikit-learn's."""
    spec = importlib.util.find_spec(package)
    assert spec is not None
    assert spec.submodule_search_locations
    return Path(spec.submodule_search_locations[0]) / path


def predict(*inputs: Any, **options: Any) -> Call:
    return _call(Operation.PREDICT, PredictRequest(inputs=list(inputs), options=options))


def embed(given: Any, **members: Any) -> Call:
    return _call(Operation.EMBEDDING, EmbeddingRequest(model="all-minilm-l6-v2", input=given, **members))


def infer(*inputs: Tensor, outputs: Sequence[str] = ()) -> Call:
    return _call(Operation.INFER, InferRequest(inputs=list(inputs), outputs=list(outputs)))


def _call(operation: Operation, request: Any) -> Call:
    now_s = time.monotonic()
    return Call(f"req_{next(_numbers)}", CALLER, "/", operation, "the-model", request, {}, 0, now_s, now_s + 60.0)


async def answer(backend: OnnxBackend, call: Call) -> Delta:
    deltas = [delta async for delta in backend.stream(call, model="m", max_output_tokens=None)]
    assert len(deltas) == 1
    return deltas[0]


@asynccontextmanager
async def serving(model: str, *, version: str | None = None, **options: Any) -> AsyncIterator[OnnxBackend]:
    """A default model, loaded, with options of the test's own."""
    row = next(row for row in default_models() if row.id == model)
    wanted = next(one for one in reversed(row.all_versions()) if version in (None, one.version))
    path = prepared_dir() / wanted.source.removeprefix("prepared:")
    async with running(path, row.model_copy(update={"options": options})) as backend:
        assert backend.health().status is Status.READY, backend.health()
        yield backend


@asynccontextmanager
async def running(path: Path, row: ModelSettings) -> AsyncIterator[OnnxBackend]:
    """A backend for any file, after it was loaded or refused."""
    backend = build_onnx(row, row.all_versions()[-1], path)
    await backend.start()
    try:
        await wait_until(lambda: backend.health().status is not Status.LOADING, "the model is loaded or refused")
        yield backend
    finally:
        await backend.close()


def row(kind: ModelKind, **options: Any) -> ModelSettings:
    return ModelSettings(id="mine", kind=kind.value, backend="onnx", source="mine.onnx", options=options)
