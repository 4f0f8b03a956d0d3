"""The error answers of the OpenAPI document, one example each, made from the error tree itself."""

from __future__ import annotations

from typing import Any, Literal

from modelport import errors as tree
from modelport.api.anthropic_errors import type_of
from modelport.errors import ModelportError

PROBLEM_SCHEMA: dict[str, Any] = {
    "type": "object",
    "title": "Problem",
    "description": "RFC 9457 problem details, and the same as OpenAI's `error` object.",
    "required": ["type", "title", "status", "detail", "instance", "request_id", "error"],
    "properties": {
        "type": {"type": "string", "format": "uri-reference", "description": "The page that explains the code."},
        "title": {"type": "string"},
        "status": {"type": "integer"},
        "detail": {"type": "string"},
        "instance": {"type": "string"},
        "request_id": {"type": "string"},
        "error": {
            "type": "object",
            "required": ["message", "type", "code", "param"],
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "code": {"type": ["string", "null"]},
                "param": {"type": ["string", "null"]},
            },
        },
    },
}
ANTHROPIC_SCHEMA: dict[str, Any] = {
    "type": "object",
    "title": "AnthropicError",
    "description": "An error as Anthropic's SDKs read it.",
    "required": ["type", "error", "request_id"],
    "properties": {
        "type": {"type": "string", "const": "error"},
        "error": {
            "type": "object",
            "required": ["type", "message"],
            "properties": {"type": {"type": "string"}, "message": {"type": "string"}},
        },
        "request_id": {"type": "string"},
    },
}
INFERENCE_SCHEMA: dict[str, Any] = {
    "type": "object",
    "title": "InferenceError",
    "description": "An error as clients of the Open Inference Protocol read it: `error` is a sentence.",
    "required": ["error"],
    "properties": {
        **{name: part for name, part in PROBLEM_SCHEMA["properties"].items() if name != "error"},
        "error": {"type": "string"},
        "code": {"type": ["string", "null"]},
        "param": {"type": ["string", "null"]},
    },
}
ErrorStyle = Literal["problem", "anthropic", "inference"]
_REQUEST_ID = "req_0199d1c2a7f07c3e8f6b5a4d3c2b1a09"

_BY_STATUS: dict[int, type[ModelportError]] = {
    400: tree.BadRequest,
    401: tree.Unauthenticated,
    402: tree.BudgetExceeded,
    403: tree.PermissionDenied,
    404: tree.NotFound,
    409: tree.Conflict,
    413: tree.BodyTooLarge,
    415: tree.UnsupportedMedia,
    422: tree.Unprocessable,
    426: tree.UpgradeRequired,
    429: tree.LimitExceeded,
    500: tree.Internal,
    502: tree.UpstreamFailed,
    503: tree.Overloaded,
    504: tree.CallTimeout,
    529: tree.Overloaded,
}


def errors(*statuses: int, style: ErrorStyle = "problem") -> dict[int | str, dict[str, Any]]:
    """FastAPI's `responses` for these statuses; 500 is always among them."""
    return {status: error_response(status, style=style) for status in sorted({*statuses, 500})}


def error_response(status: int, *, style: ErrorStyle = "problem") -> dict[str, Any]:
    """One response object with an example."""
    kind = _BY_STATUS[status]
    if style == "anthropic":
        member = {"type": type_of(status), "message": kind.title}
        told: dict[str, Any] = {"type": "error", "error": member, "request_id": _REQUEST_ID}
        content = {"application/json": {"schema": ANTHROPIC_SCHEMA, "example": told}}
        return {"description": kind.title, "content": content}
    example: dict[str, Any] = {
        "type": f"/errors/{kind.code}",
        "title": kind.title,
        "status": status,
        "detail": kind.title,
        "instance": "/v1/…",
        "request_id": _REQUEST_ID,
        "error": {"message": kind.title, "type": kind.type, "code": kind.code, "param": None},
    }
    if style == "inference":
        told = example | {"error": kind.title, "code": kind.code, "param": None}
        content = {"application/json": {"schema": INFERENCE_SCHEMA, "example": told}}
        return {"description": kind.title, "content": content}
    return {
        "description": kind.title,
        "content": {"application/problem+json": {"schema": PROBLEM_SCHEMA, "example": example}},
    }
