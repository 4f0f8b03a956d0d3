"""JSON schemas that a caller wants an answer to follow: checked, bounded, and turned into a grammar.

The engine compiles grammars (llguidance's) on the thread that serves every slot, and answers *without* a grammar
where it can't compile one. So what it can't enforce is sorted out here, and each finished answer is validated.
Source: JSON Schema 2020-12; llguidance, docs/json_schema.md (the keywords that it enforces).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NoReturn

import jsonschema_rs
import msgspec

from modelport.errors import BadRequest

# Compiling is linear in these, at a few milliseconds for the largest; OpenAI allows 5 levels and 1,000 enum values.
_MAX_BYTES, _MAX_NODES, _MAX_DEPTH, _MAX_ENUM = 60_000, 1_000, 24, 1_000
_MAX_COUNT, _MAX_PATTERN = 4_096, 256
_ANNOTATIONS = frozenset(
    [
        *("title", "description", "default", "examples", "deprecated", "readOnly", "writeOnly", "uniqueItems"),
        *("$schema", "$id", "$comment", "contentEncoding", "contentMediaType"),
    ]
)
_COUNTS = frozenset(["minLength", "maxLength", "minItems", "maxItems", "minProperties", "maxProperties"])
_PLAIN = frozenset(
    ("type", "const", "required", "minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf")
)
_SINGLE = ("items", "additionalProperties")
_LISTS = ("anyOf", "oneOf", "allOf", "prefixItems")
_MAPS = ("properties", "patternProperties", "$defs", "definitions")
_FORMATS = frozenset(["date-time", "time", "date", "duration", "email", "hostname", "ipv4", "ipv6", "uuid"])
# Look-around and back references are beyond a regular language; counts multiply into large automata.
_UNSUPPORTED_PATTERN = re.compile(r"\(\?[=!<]|\\[1-9bB]|\{\d{4,}|\{\d*,\d{4,}")
# Without freedom in white space a small model can't lose itself in blank lines.
_STYLE = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}


@dataclass(frozen=True, slots=True)
class Schema:
    """A schema that the engine can enforce. `body` is what the grammar is made of; `holds` judges an answer."""

    body: dict[str, Any]
    validator: Any

    @property
    def styled(self) -> str:
        """The schema as JSON for a `%json` rule of a grammar."""
        return msgspec.json.encode({**self.body, "x-guidance": _STYLE}).decode()

    @property
    def grammar(self) -> str:
        return f"%llguidance {{}}\nstart: %json {self.styled}"

    def holds(self, text: str) -> bool:
        """Whether `text` is JSON that follows the schema."""
        try:
            return bool(self.validator.is_valid(msgspec.json.decode(text)))
        except (msgspec.DecodeError, UnicodeDecodeError):
            return False


def any_object() -> Schema:
    """What `response_format: {"type": "json_object"}` asks for."""
    return check({"type": "object"}, param="response_format", strict=True)


def check(schema: Any, *, param: str, strict: bool) -> Schema:
    """`schema` as something the engine enforces; not `strict`: keywords that it can't are left out.

    Raises: BadRequest that names the place and what is wrong with it.
    """
    if not isinstance(schema, dict):
        _refuse(param, "", "a schema is an object")
    if len(msgspec.json.encode(schema)) > _MAX_BYTES:
        _refuse(param, "", f"it is larger than {_MAX_BYTES} bytes")
    walk = _Walk(schema, param, strict)
    body = walk.clean(schema, "", 0, closed=True)
    _refuse_empty_cycles(schema, param)
    return Schema(body, _validator(schema if strict else body, param))


def _validator(schema: dict[str, Any], param: str) -> Any:
    try:
        return jsonschema_rs.validator_for(schema, retriever=_no_retrieval)
    except jsonschema_rs.ValidationError as error:
        place = "".join(f"/{part}" for part in error.instance_path)
        raise _bad(param, place, "this is not what JSON Schema allows here") from None
    except (jsonschema_rs.ReferencingError, ValueError):
        raise _bad(param, "", "a reference or a pattern in it can't be resolved") from None


def _no_retrieval(uri: str) -> NoReturn:
    raise ValueError(uri)


def _bad(param: str, place: str, reason: str) -> BadRequest:
    where = f" at {place}" if place else ""
    return BadRequest(f"The JSON schema is not usable{where}: {reason}.", param=param)


def _refuse(param: str, place: str, reason: str) -> NoReturn:
    raise _bad(param, place, reason)


class _Walk:
    """One pass over a schema: bounds, and a copy that holds only what the engine enforces."""

    def __init__(self, root: dict[str, Any], param: str, strict: bool) -> None:
        self._root, self._param, self._strict = root, param, strict
        self._nodes = 0

    def clean(self, node: Any, place: str, depth: int, *, closed: bool) -> Any:
        """`closed`: an object without `additionalProperties` may be held to the properties that it names."""
        self._nodes += 1
        if self._nodes > _MAX_NODES or depth > _MAX_DEPTH:
            _refuse(self._param, place, f"it has more than {_MAX_NODES} parts or {_MAX_DEPTH} levels")
        if isinstance(node, bool):
            return node
        if not isinstance(node, dict):
            _refuse(self._param, place, "a schema is an object or a boolean")
        kept: dict[str, Any] = {}
        combined = any(name in node for name in ("allOf", "anyOf", "oneOf", "$ref", "patternProperties"))
        inner = closed and "allOf" not in node
        for name, value in node.items():
            self._keyword(kept, name, value, f"{place}/{name}", depth, inner)
        lowest, highest = node.get("minimum"), node.get("maximum")
        numeric = node.get("type") in ("integer", "number")
        if numeric and isinstance(lowest, int | float) and isinstance(highest, int | float) and lowest > highest:
            # The engine notices it only sometimes, and then generates something that is of no use.
            _refuse(self._param, place, "`minimum` is above `maximum`, which can't be enforced")
        if closed and not combined and isinstance(node.get("properties"), dict) and "additionalProperties" not in node:
            kept["additionalProperties"] = False
        return kept

    def _keyword(self, kept: dict[str, Any], name: str, value: Any, place: str, depth: int, closed: bool) -> None:
        if name in _SINGLE:
            kept[name] = self.clean(value, place, depth + 1, closed=closed)
        elif name in _LISTS and isinstance(value, list):
            parts = enumerate(value)
            kept[name] = [self.clean(part, f"{place}/{i}", depth + 1, closed=closed) for i, part in parts]
        elif name in _MAPS and isinstance(value, dict):
            # What lies in $defs may be used from inside an allOf, so it is left as open as it came.
            shut = closed and name in ("properties", "patternProperties")
            kept[name] = {
                key: self.clean(part, f"{place}/{key}", depth + 1, closed=shut) for key, part in value.items()
            }
            if name == "patternProperties":
                for key in value:
                    self._pattern(key, place)
        elif name not in _ANNOTATIONS or (name == "uniqueItems" and value is True):
            self._leaf(kept, name, value, place)

    def _leaf(self, kept: dict[str, Any], name: str, value: Any, place: str) -> None:
        if name in _COUNTS and isinstance(value, int) and value > _MAX_COUNT:
            if name.startswith("min") or self._strict:
                _refuse(self._param, place, f"the most that can be guaranteed is {_MAX_COUNT}")
            return
        if name == "enum" and isinstance(value, list) and not 0 < len(value) <= _MAX_ENUM:
            _refuse(self._param, place, f"it has no values or more than {_MAX_ENUM}")
        if name == "$ref":
            _target(self._root, value, self._param, place)
        if name == "pattern" and not self._pattern(value, place):
            return
        if name == "format":
            # A format that isn't enforced is an annotation, as JSON Schema has it.
            if value in _FORMATS:
                kept[name] = value
        elif name in _PLAIN or name in _COUNTS or name in ("enum", "$ref", "pattern"):
            kept[name] = value
        elif self._strict:
            _refuse(self._param, place, f"`{name}` can't be guaranteed by this model's engine; leave it out")

    def _pattern(self, value: Any, place: str) -> bool:
        usable = isinstance(value, str) and len(value) <= _MAX_PATTERN and not _UNSUPPORTED_PATTERN.search(value)
        if not usable and self._strict:
            _refuse(self._param, place, "a pattern has no look-around, no back references and no large counts")
        return usable


def _target(root: dict[str, Any], ref: Any, param: str, place: str) -> Any:
    """What a local reference points at."""
    if not isinstance(ref, str) or not (ref == "#" or ref.startswith("#/")):
        _refuse(param, place, "references reach inside the schema only, such as #/$defs/name")
    node: Any = root
    for part in ref.split("/")[1:]:
        name = part.replace("~1", "/").replace("~0", "~")
        if isinstance(node, list) and name.isdigit() and int(name) < len(node):
            node = node[int(name)]
        elif isinstance(node, dict) and name in node:
            node = node[name]
        else:
            _refuse(param, place, f"{ref[:100]} is not in the schema")
    return node


def _refuse_empty_cycles(root: dict[str, Any], param: str) -> None:
    """Refuse schemas that are defined by themselves alone: the engine was seen to work on one for 16 seconds."""
    done: set[int] = set()

    def visit(node: Any, path: frozenset[int]) -> None:
        if not isinstance(node, dict) or id(node) in done:
            return
        if id(node) in path:
            _refuse(param, "", "a part of it is defined by nothing but itself")
        if len(path) > _MAX_NODES // 4:
            _refuse(param, "", "its references go round too many corners")
        deeper = path | {id(node)}
        if "$ref" in node:
            visit(_target(root, node["$ref"], param, "/$ref"), deeper)
        for part in (part for name in ("anyOf", "oneOf", "allOf") for part in node.get(name, ())):
            visit(part, deeper)
        done.add(id(node))

    for node in _nodes(root):
        visit(node, frozenset())


def _nodes(node: Any) -> Iterator[dict[str, Any]]:
    if isinstance(node, dict):
        yield node
        for value in node.values():
            yield from _nodes(value)
    elif isinstance(node, list):
        for value in node:
            yield from _nodes(value)
