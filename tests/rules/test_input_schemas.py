"""Inputs held to a JSON Schema: what is told of those that do not fit, and that a schema can do no harm."""

from __future__ import annotations

import math
from collections.abc import AsyncGenerator
from typing import Any

import pytest

from modelport.backends.protocol import Health, Status
from modelport.calls import Call, Caller, Delta, Operation, Usage
from modelport.catalog.schemas import CheckedBackend, InputSchema, check_schema
from modelport.errors import BadRequest, Unavailable
from modelport.requests import PredictRequest

FLOWER = {
    "type": "object",
    "properties": {"petal": {"type": "number", "minimum": 0}, "names": {"type": "array", "items": {"type": "string"}}},
    "required": ["petal"],
    "additionalProperties": False,
}
_CALLER = Caller("org_1", "proj_1", "key_1", "live", frozenset({"inference"}), "plan_1")


class Echo:
    """A model that predicts what it was given, and counts what it saw."""

    kind = "echo"

    def __init__(self, own: dict[str, Any] | None = None) -> None:
        self.seen: list[list[Any]] = []
        self._own = own

    async def start(self) -> None: ...

    async def close(self) -> None: ...

    def health(self) -> Health:
        return Health(Status.READY)

    def info(self) -> dict[str, Any]:
        return {"num_labels": 3} | ({"input_schema": self._own} if self._own else {})

    async def count_input(self, call: Call, *, model: str) -> int:
        return len(call.request.inputs)

    async def stream(self, call: Call, *, model: str, max_output_tokens: int | None) -> AsyncGenerator[Delta]:
        self.seen.append(call.request.inputs)
        yield Delta(whole=True, value=list(call.request.inputs), usage=Usage())


def call(*inputs: Any, partial: bool = False) -> Call:
    request = PredictRequest(inputs=list(inputs), model="flower")
    return Call(
        "req_1", _CALLER, "/v1/predict", Operation.PREDICT, "flower", request, {}, 0, 0.0, 60.0, partial=partial
    )


async def answer(backend: CheckedBackend, asked: Call) -> list[Any]:
    (value,) = [delta.value async for delta in backend.stream(asked, model="flower", max_output_tokens=None)]
    return list(value)


@pytest.mark.parametrize(
    ("value", "param", "told"),
    [
        ({"petal": "x"}, "inputs[1].petal", "not of type"),
        ({"petal": -1}, "inputs[1].petal", "less than the minimum"),
        ({"petal": 1, "names": ["a", 2]}, "inputs[1].names[1]", "not of type"),
        ({}, "inputs[1]", "required"),
        ({"petal": 1, "other": 2}, "inputs[1]", "other"),
        ([1], "inputs[1]", "not of type"),
        (None, "inputs[1]", "not of type"),
        ({"petal": math.nan}, "inputs[1].petal", "not of type"),
        ({"petal": 1, "\ud800": 2}, "inputs[1]", "Unicode"),
    ],
)
async def test_an_input_that_does_not_fit_is_named_with_its_path(value: Any, param: str, told: str) -> None:
    """The model sees nothing of the call then, and the message has nothing of the value."""
    inner = Echo()
    with pytest.raises(BadRequest, match=told) as caught:
        await answer(CheckedBackend(inner, input_schema=FLOWER), call({"petal": 1}, value))
    assert caught.value.param == param
    assert inner.seen == []


async def test_of_a_partial_call_only_that_input_fails() -> None:
    inner = Echo()
    value = await answer(
        CheckedBackend(inner, input_schema=FLOWER), call({"petal": "x"}, {"petal": 1}, {}, {"petal": 2}, partial=True)
    )
    assert [type(one) for one in value] == [BadRequest, dict, BadRequest, dict]
    assert [error.param for error in value[::2]] == ["inputs[0].petal", "inputs[2]"]
    assert inner.seen == [[{"petal": 1}, {"petal": 2}]]


async def test_where_no_input_is_left_the_model_is_not_asked() -> None:
    inner = Echo()
    backend = CheckedBackend(inner, input_schema=FLOWER)
    asked = call({}, {}, partial=True)
    assert await backend.count_input(asked, model="flower") == 0
    assert [type(one) for one in await answer(backend, asked)] == [BadRequest, BadRequest]
    assert inner.seen == []


async def test_a_models_own_schema_holds_where_it_does_not_check_by_itself() -> None:
    backend = CheckedBackend(Echo(own=FLOWER), own=True)
    with pytest.raises(BadRequest):
        await answer(backend, call({}))
    assert await answer(CheckedBackend(Echo(own=FLOWER)), call({})) == [{}]


async def test_a_model_whose_own_schema_is_none_has_failed_and_says_why() -> None:
    backend = CheckedBackend(Echo(own={"type": "nonsense"}), own=True)
    assert "input_schema is no JSON Schema" in backend.health().detail
    with pytest.raises(Unavailable):
        await answer(backend, call({}))


async def test_an_uploaded_file_has_no_schema() -> None:
    assert await answer(CheckedBackend(Echo(), input_schema=FLOWER), call(b"\x89PNG")) == [b"\x89PNG"]


def test_the_configured_schemas_are_published_beside_what_the_model_tells() -> None:
    told = CheckedBackend(Echo(own={"type": "array"}), input_schema=FLOWER, output_schema={"type": "object"}).info()
    assert told == {"num_labels": 3, "input_schema": FLOWER, "output_schema": {"type": "object"}}


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "nonsense"},
        {"$ref": "https://example.com/schema.json"},
        {"$ref": "file:///etc/passwd"},
        {"$ref": "#/nowhere"},
        {"type": "string", "pattern": "(?=a)b"},
    ],
)
def test_a_schema_that_leads_elsewhere_or_is_none_is_refused_at_start(schema: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"input_schema of model 'x' is no JSON Schema"):
        check_schema(schema, "input_schema of model 'x'")


def test_a_message_is_bounded_whatever_the_schema_and_the_value() -> None:
    schema = InputSchema({"enum": ["x" * 1000] * 2 + ["y" * 1000]})
    error = schema.error("z" * 1_000_000, "inputs[0]")
    assert error is not None
    assert len(error.message) < 400


def test_a_pattern_takes_no_longer_for_a_hostile_text() -> None:
    """A backtracking engine would take for ever here."""
    assert InputSchema({"type": "string", "pattern": "^(a+)+$"}).error("a" * 50_000 + "b", "inputs[0]") is not None
