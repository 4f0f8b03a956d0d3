"""What the corridor asks of whatever answers: a local engine, an upstream server, the sandbox."""

from __future__ import annotations

import enum
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import Protocol

from modelport.calls import Call, Delta


class Status(enum.StrEnum):
    LOADING = "loading"
    READY = "ready"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Health:
    """A backend's state in one word and, where it isn't ready, a sentence that says why and what to do."""

    status: Status
    detail: str = ""


class Backend(Protocol):
    """One model version on a local engine, or one upstream server with any number of models.

    Concurrency: `stream` is called from many tasks at once; the backend bounds its own queue.
    """

    @property
    def kind(self) -> str:
        """The word of the configuration: `llamacpp`, `onnx`, `openai`, `sandbox`."""
        ...

    async def start(self) -> None:
        """Begin to load and return soon; `health` tells when it is ready. Never raises for a bad model."""
        ...

    async def close(self) -> None:
        """Stop everything that `start` and `stream` began. Idempotent."""
        ...

    def health(self) -> Health: ...

    async def count_input(self, call: Call, *, model: str) -> int:
        """Input tokens of the call, for the reservation: exact on local engines, an estimate elsewhere; 0 where
        the operation has no tokens. Raises: BadRequest, Unavailable."""
        ...

    def stream(self, call: Call, *, model: str, max_output_tokens: int | None) -> AsyncGenerator[Delta]:
        """The answer's pieces. `model` is the backend's own name for it; `max_output_tokens` bounds the answer
        where the caller set no bound of its own.

        Closing the generator (or cancelling the task inside it) stops the engine at once. Errors before the
        first delta are raised as `ModelportError`; so are later ones, after what was produced was yielded.
        Raises: BadRequest, Overloaded, ModelLoading, UpstreamFailed, UpstreamRejected, CallTimeout.
        """
        ...


@dataclass(frozen=True, slots=True)
class Target:
    """One backend that can answer for a version, and its own name for the model."""

    backend: Backend
    upstream_model: str
    upstream: str = ""
    weight: int = 1
