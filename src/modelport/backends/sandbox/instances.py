"""A small valid instance of a JSON schema, the same one each time."""

from __future__ import annotations

import math
from typing import Any

import jsonschema_rs

from modelport.errors import BadRequest

MAX_DEPTH = 32
# Members, items and characters in all: two lines of schema can ask for a billion of them.
MAX_NODES = 10_000

_TOO_LARGE = "its smallest instance is too large, or has no end"
_FORMATS = {
    "date-time": "2026-01-01T00:00:00Z",
    "date": "2026-01-01",
    "time": "00:00:00Z",
    "duration": "P1D",
    "email": "sandbox@example.com",
    "hostname": "example.com",
    "uri": "https://example.com/",
    "ipv4": "192.0.2.1",
    "ipv6": "2001:db8::1",
    "uuid": "00000000-0000-4000-8000-000000000000",
}


def make_instance(schema: Any, *, param: str) -> Any:
    """An instance of `schema`: the required properties (all, where it does not say which), the fewest items, the
    numbers nearest to zero.

    Raises: BadRequest when the schema is no JSON schema, refers outside itself, or has no instance that is this
    easily found (a pattern, a contradiction).
    """
    try:
        value = _Maker(schema).make(schema, depth=0)
        valid = jsonschema_rs.validator_for(schema, retriever=_refuse).is_valid(value)
    except (
        _Impossible,
        ValueError,
        ArithmeticError,
        TypeError,
        AttributeError,
        jsonschema_rs.ReferencingError,
    ) as error:
        why = str(error) if isinstance(error, _Impossible) else "it is not a valid JSON schema"
        raise BadRequest(f"The sandbox can't make an instance of this schema: {why}.", param=param) from error
    if not valid:
        raise BadRequest(
            "The sandbox can't make an instance of this schema: its conditions are too intricate for a mock.",
            param=param,
        )
    return value


class _Impossible(Exception):
    """There is no instance, or none that is this easily found."""


def _refuse(uri: str) -> Any:
    raise ValueError(f"{uri} lies outside the schema")


class _Maker:
    __slots__ = ("_left", "_root")

    def __init__(self, root: Any) -> None:
        self._root = root
        self._left = MAX_NODES

    def make(self, schema: Any, *, depth: int) -> Any:
        self._left -= 1
        if depth > MAX_DEPTH or self._left < 0:
            raise _Impossible(_TOO_LARGE)
        if not isinstance(schema, dict):
            return {} if schema is True else None
        for fixed in ("const", "default"):
            if fixed in schema:
                return schema[fixed]
        if isinstance(schema.get("enum"), list) and schema["enum"]:
            return schema["enum"][0]
        if isinstance(schema.get("$ref"), str):
            return self.make(self._resolve(schema["$ref"]), depth=depth + 1)
        for choice in ("anyOf", "oneOf"):
            if isinstance(schema.get(choice), list) and schema[choice]:
                return self.make(self._simplest(schema[choice]), depth=depth + 1)
        if isinstance(schema.get("allOf"), list):
            return self.make(self._merged(schema), depth=depth + 1)
        return self._typed(schema, depth=depth)

    def _typed(self, schema: dict[str, Any], *, depth: int) -> Any:
        kind = schema.get("type")
        kind = kind[0] if isinstance(kind, list) and kind else kind
        if kind == "object" or (kind is None and "properties" in schema):
            return self._object(schema, depth=depth)
        if kind == "array":
            count = self._size(schema, "minItems")
            return [self.make(schema.get("items", {"type": "null"}), depth=depth + 1) for _ in range(count)]
        if kind == "string":
            return self._string(schema)
        if kind in ("integer", "number"):
            return _number(schema, whole=kind == "integer")
        return {"boolean": False, "null": None}.get(str(kind), {})

    def _object(self, schema: dict[str, Any], *, depth: int) -> dict[str, Any]:
        properties = schema.get("properties")
        properties = properties if isinstance(properties, dict) else {}
        required = schema.get("required")
        names = required if isinstance(required, list) else list(properties)
        return {str(name): self.make(properties.get(name, {"type": "null"}), depth=depth + 1) for name in names}

    def _string(self, schema: dict[str, Any]) -> str:
        known = _FORMATS.get(str(schema.get("format")))
        if known is not None:
            return known
        text = "sandbox".ljust(self._size(schema, "minLength"), ".")
        most = schema.get("maxLength")
        return text[:most] if isinstance(most, int) else text

    def _size(self, schema: dict[str, Any], name: str) -> int:
        size = schema.get(name, 0)
        size = size if isinstance(size, int) else 0
        self._left -= size
        if self._left < 0:
            raise _Impossible(_TOO_LARGE)
        return size

    def _resolve(self, reference: str) -> Any:
        """What a reference inside the schema points to (RFC 6901)."""
        if not reference.startswith("#"):
            raise _Impossible("it refers outside itself")
        found = self._root
        for step in reference[1:].split("/")[1:]:
            name = step.replace("~1", "/").replace("~0", "~")
            if not isinstance(found, dict) or name not in found:
                raise _Impossible(f"it refers to {reference[:100]!r}, which it does not have")
            found = found[name]
        return found

    def _simplest(self, choices: list[Any]) -> Any:
        """The first alternative that ends by itself, so that a recursive one is not followed for ever."""
        for choice in choices:
            if isinstance(choice, dict) and "$ref" not in choice:
                return choice
        return choices[0]

    def _merged(self, schema: dict[str, Any]) -> dict[str, Any]:
        merged = {name: value for name, value in schema.items() if name != "allOf"}
        for part in schema["allOf"]:
            if isinstance(part, dict) and isinstance(part.get("$ref"), str):
                part = self._resolve(part["$ref"])
            for name, value in part.items() if isinstance(part, dict) else ():
                if name == "properties":
                    merged[name] = {**merged.get(name, {}), **value}
                elif name == "required":
                    merged[name] = [*merged.get(name, []), *value]
                else:
                    merged[name] = value
        return merged


def _number(schema: dict[str, Any], *, whole: bool) -> float | int:
    """The number nearest to zero that the bounds and the step allow."""
    step = schema.get("multipleOf", 1 if whole else 0)
    low = schema.get("minimum", schema.get("exclusiveMinimum", -math.inf))
    high = schema.get("maximum", schema.get("exclusiveMaximum", math.inf))
    value = min(max(0, low), high)
    if step:
        value = math.ceil(value / step) * step if value == low else math.floor(value / step) * step
    if value == schema.get("exclusiveMinimum"):
        value += step or 1
    if value == schema.get("exclusiveMaximum"):
        value -= step or 1
    return int(value) if whole else value
