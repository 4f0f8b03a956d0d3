"""The OpenAPI 3.1 document: FastAPI's part, and the hot routes that bypass FastAPI described beside them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import msgspec
from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from modelport import __version__
from modelport.api.responses import ErrorStyle, error_response

_TAGS = [
    {"name": "Chat", "description": "Language models in OpenAI's format."},
    {"name": "Messages", "description": "The same models in Anthropic's format."},
    {"name": "Predict", "description": "Models that answer at once: images, tables, text."},
    {
        "name": "Open Inference Protocol",
        "description": "Models by tensors, as clients of KServe and Triton call them.",
    },
    {"name": "WebSocket", "description": "Many calls on one connection."},
    {"name": "Models", "description": "What can be called."},
    {"name": "API keys", "description": "Keys, their scopes and limits."},
    {"name": "Usage", "description": "What was called, by whom, and what it cost."},
    {"name": "Budgets", "description": "How much calls may cost, and what is left of budgets and limits."},
    {"name": "Operation", "description": "What operators see of the installation."},
    {"name": "Health", "description": "For load balancers and people on call."},
    {"name": "Documents", "description": "This document and the error catalogue."},
]
_DESCRIPTION = """Real models behind one key, one limit and one ledger.

Send an API key as `Authorization: Bearer mp_live_…` or `X-API-Key`. The official OpenAI SDKs work by changing
`base_url` to this server's address followed by `/v1`, Anthropic's with the address alone. Every answer carries
`x-request-id`; its receipt is at `/v1/requests/{id}`.
"""


_ONCE: dict[str, Any] = {
    "name": "Idempotency-Key",
    "in": "header",
    "required": False,
    "description": "Any text of your own: the request runs once, and whoever repeats it gets the same answer.",
    "schema": {"type": "string", "minLength": 1, "maxLength": 255},
    "example": "5b9b4c0e-8d0f-4a57-9a52-9f3d6a9c7f10",
}
_CACHE_CONTROL: dict[str, Any] = {
    "name": "Cache-Control",
    "in": "header",
    "required": False,
    "description": "`no-cache`, `no-store` or `max-age`, for models with a cache.",
    "schema": {"type": "string"},
    "example": "no-cache",
}


@dataclass(frozen=True, slots=True)
class HotRoute:
    """How a route that bypasses FastAPI is described. Examples are JSON values."""

    path: str
    operation_id: str
    summary: str
    description: str
    tag: str
    request: type
    request_example: Any
    response_example: Any
    response_schema: dict[str, Any]
    stream_example: str = ""
    multipart: bool = False
    errors: ErrorStyle = "problem"
    openai: bool = True


def build(app: FastAPI) -> dict[str, Any]:
    """The whole document."""
    routes: tuple[HotRoute, ...] = app.state.hot_routes
    document = get_openapi(
        title="Modelport",
        version=__version__,
        openapi_version="3.1.0",
        summary="An API platform over real models.",
        description=_DESCRIPTION,
        routes=app.routes,
        tags=_TAGS,
        servers=[{"url": app.state.public_url or "/", "description": "This server."}],
        terms_of_service="https://www.apache.org/licenses/LICENSE-2.0",
        contact={"name": "The operator of this server", "url": "https://github.com/modelport"},
        license_info={"name": "Apache-2.0", "identifier": "Apache-2.0"},
    )
    schemas, components = msgspec.json.schema_components(
        [route.request for route in routes], ref_template="#/components/schemas/{name}"
    )
    document["components"].setdefault("schemas", {}).update(components)
    for route, schema in zip(routes, schemas, strict=True):
        document["paths"][route.path] = {"post": _operation(route, schema)}
    for path, operations in document["paths"].items():
        if app.state.deprecations.find(path) is not None:
            for operation in operations.values():
                operation["deprecated"] = True
    _fill_examples(document)
    return document


def _operation(route: HotRoute, schema: dict[str, Any]) -> dict[str, Any]:
    content: dict[str, Any] = {"application/json": {"schema": schema, "example": route.request_example}}
    if route.multipart:
        form = {
            "type": "object",
            "required": ["image"],
            "properties": {
                "image": {"type": "string", "format": "binary"},
                "model": {"type": "string"},
                "top_k": {"type": "integer"},
            },
        }
        content["multipart/form-data"] = {"schema": form, "example": {"image": "(the file)", "top_k": 3}}
    answer: dict[str, Any] = {"application/json": {"schema": route.response_schema, "example": route.response_example}}
    if route.stream_example:
        answer["text/event-stream"] = {"schema": {"type": "string"}, "example": route.stream_example}
    # A budget that is spent is 429 where OpenAI's SDKs expect it.
    spent = () if route.openai else (402,)
    statuses: tuple[int, ...] = (400, 401, *spent, 403, 404, 409, 413, 415, 422, 429, 500, 502, 503, 504)
    if route.errors == "anthropic":
        statuses += (529,)
    return {
        "operationId": route.operation_id,
        "tags": [route.tag],
        "summary": route.summary,
        "description": route.description,
        "security": [{"Bearer": []}, {"X-API-Key": []}],
        "parameters": [*_in_path(route.path), _ONCE, _CACHE_CONTROL],
        "requestBody": {"required": True, "content": content},
        "responses": {
            "200": {"description": "The answer.", "content": answer},
            **{str(status): error_response(status, style=route.errors) for status in statuses},
        },
    }


def _in_path(path: str) -> list[dict[str, Any]]:
    return [
        {
            "name": name,
            "in": "path",
            "required": True,
            "description": f"The {name}'s name.",
            "schema": {"type": "string"},
            "example": {"model": "iris", "version": "2"}[name],
        }
        for name in re.findall(r"{(\w+)}", path)
    ]


def _fill_examples(document: dict[str, Any]) -> None:
    """Give each body without an example the one of its schema, so that every operation shows one."""
    schemas = document["components"]["schemas"]
    for path in document["paths"].values():
        for method, operation in path.items():
            # FastAPI writes this one by itself, and it is never sent.
            if "HTTPValidationError" in str(operation["responses"].get("422")):
                del operation["responses"]["422"]
            if method == "post" and _ONCE not in operation.setdefault("parameters", []):
                operation["parameters"].append(_ONCE)
            for holder in (operation.get("requestBody", {}), *operation["responses"].values()):
                for media in holder.get("content", {}).values():
                    if "example" not in media and "examples" not in media:
                        media["example"] = _example(media.get("schema", {}), schemas, 0)


def _example(schema: dict[str, Any], schemas: dict[str, Any], depth: int) -> Any:
    """A value that fits the schema, from its own examples where it has some."""
    if "$ref" in schema:
        return _example(schemas[schema["$ref"].rsplit("/", 1)[1]], schemas, depth)
    for key in ("example", "default", "const"):
        if key in schema:
            return schema[key]
    if schema.get("examples"):
        return schema["examples"][0]
    if depth > 6:
        return None
    for key in ("anyOf", "oneOf", "allOf"):
        if key in schema:
            return _example(schema[key][0], schemas, depth + 1)
    kind = schema.get("type")
    if kind == "object":
        members = schema.get("properties", {})
        return {name: _example(member, schemas, depth + 1) for name, member in members.items()}
    if kind == "array":
        return [_example(schema.get("items", {}), schemas, depth + 1)]
    return {"string": "text", "integer": 1, "number": 1.0, "boolean": True}.get(str(kind))
