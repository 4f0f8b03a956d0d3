"""Which of the platform's error formats a path speaks: one place for hot routes, streams and the management API."""

from __future__ import annotations

from typing import NamedTuple

from modelport.api import anthropic_errors
from modelport.api.problems import PROBLEM_TYPE, inference_body, problem_body, retry_headers, stream_event
from modelport.errors import ModelportError

_MESSAGES = "/v1/messages"


class Failure(NamedTuple):
    """An error answer, complete but for the headers that every answer has."""

    status: int
    content_type: bytes
    body: bytes
    headers: list[tuple[bytes, bytes]]


def speaks_anthropic(path: str) -> bool:
    """Whether Anthropic's SDKs are the clients at this path."""
    return path == _MESSAGES or path.startswith(f"{_MESSAGES}/")


def speaks_inference(path: str) -> bool:
    """Whether clients of the Open Inference Protocol call this path."""
    return path == "/v2" or path.startswith(("/v2/models/", "/v2/health/"))


def failure(error: ModelportError, *, request_id: str, path: str, base_url: str) -> Failure:
    """How the error is told at `path`."""
    if speaks_anthropic(path):
        body = anthropic_errors.error_body(error, request_id=request_id)
        return Failure(anthropic_errors.status_of(error), b"application/json", body, retry_headers(error))
    if speaks_inference(path):
        body = inference_body(error, request_id=request_id, path=path, base_url=base_url)
        return Failure(error.status, b"application/json", body, retry_headers(error))
    body = problem_body(error, request_id=request_id, path=path, base_url=base_url)
    return Failure(error.status, PROBLEM_TYPE, body, retry_headers(error))


def failure_event(error: ModelportError, *, request_id: str, path: str) -> bytes:
    """The last event of a stream at `path` that failed after its first byte."""
    if speaks_anthropic(path):
        return anthropic_errors.error_event(error, request_id=request_id)
    return stream_event(error)
