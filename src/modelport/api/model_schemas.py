"""The OpenAPI document with what each model takes at `/v1/predict`, for whoever may call it."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

import msgspec

from modelport.calls import Operation
from modelport.catalog.model import Model
from modelport.catalog.service import model_info

_PATH = "/v1/predict"
_REFERENCE = "#/components/schemas/"
# The document is read by people and generators: beyond this a model's schema is at /v1/models/{id} alone.
_MOST_MODELS = 100
_MOST_BYTES = 20_000
_encode = msgspec.json.Encoder().encode


def with_models(document: dict[str, Any], models: Iterable[Model]) -> dict[str, Any]:
    """A copy of the document in which the body of a prediction is told apart by `model`; itself where none predicts."""
    schemas: dict[str, Any] = {}
    mapping: dict[str, str] = {}
    for model in models:
        if Operation.PREDICT not in model.operations or len(mapping) == _MOST_MODELS:
            continue
        name = f"Predict.{len(mapping)}.{re.sub(r'[^A-Za-z0-9._-]', '_', model.id)}"
        schemas[name] = _request(model)
        mapping[model.id] = _REFERENCE + name
    if not mapping:
        return document
    told = {
        "oneOf": [{"$ref": reference} for reference in mapping.values()],
        "discriminator": {"propertyName": "model", "mapping": mapping},
    }
    components = document["components"]
    return document | {
        "paths": document["paths"] | {_PATH: _with_body(document["paths"][_PATH], told)},
        "components": components | {"schemas": components["schemas"] | schemas},
    }


def _request(model: Model) -> dict[str, Any]:
    """A request to this model."""
    own = {
        "type": "object",
        "properties": {"model": {"const": model.id}, "inputs": {"type": "array", "items": _input(model)}},
        "required": ["model", "inputs"],
    }
    return {"description": model.settings.description, "allOf": [{"$ref": _REFERENCE + "PredictRequest"}, own]}


def _input(model: Model) -> dict[str, Any]:
    schema = model_info(model).get("input_schema")
    text = b"" if schema is None else _encode(schema)
    if schema is None or len(text) > _MOST_BYTES:
        return {"description": f"As `input_schema` in `/v1/models/{model.id}` says."}
    # What it refers to lies in itself, not in this document.
    return {"$id": f"urn:modelport:input:{model.id}"} | dict(schema) if b'"$ref"' in text else dict(schema)


def _with_body(path: dict[str, Any], schema: dict[str, Any]) -> dict[str, Any]:
    post = path["post"]
    content = post["requestBody"]["content"]
    body = {"application/json": content["application/json"] | {"schema": schema}}
    return path | {"post": post | {"requestBody": post["requestBody"] | {"content": content | body}}}
