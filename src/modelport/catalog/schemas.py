"""Inputs held to a JSON Schema before a model sees them."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Protocol, cast

import jsonschema_rs
import msgspec

from modelport.backends.protocol import Backend, Health, Status
from modelport.calls import Call, Delta, Operation, Usage
from modelport.errors import BadRequest, Unavailable

_MASK = "the value"
# What a message says of a rule of the schema's own; an `enum` may be long.
_LONGEST_MESSAGE = 300


class InputSchema:
    """A schema of one input, compiled once. Nothing that it refers to is fetched."""

    def __init__(self, schema: Mapping[str, Any]) -> None:
        """Raises: ValueError for what is no schema, refers outside itself, or has a pattern that may take for ever."""
        self._validator = jsonschema_rs.validator_for(
            dict(schema), retriever=_refuse, mask=_MASK, pattern_options=jsonschema_rs.RegexOptions()
        )

    def error(self, value: Any, param: str) -> BadRequest | None:
        """Why the value does not fit, with the path to what does not; None where it does.

        A file that was uploaded as it is has no schema.
        """
        if isinstance(value, bytes):
            return None
        try:
            if self._validator.is_valid(value):
                return None
            self._validator.validate(value)
        except jsonschema_rs.ValidationError as error:
            place = param + _path(error.instance_path)
            return BadRequest(f"{place}: {error.message[:_LONGEST_MESSAGE]}.", param=place)
        except ValueError:
            # Half of a surrogate pair, which is no text.
            return BadRequest(f"{param}: it has text that is not valid Unicode.", param=param)
        return None


class _Informed(Protocol):
    def info(self) -> dict[str, Any]: ...


class CheckedBackend:
    """A backend whose predictions' inputs are held to a schema: the configured one, or the model's own.

    A call with an input that does not fit is refused; of a partial call that input alone fails. What else the backend
    can do, it does.
    """

    def __init__(
        self,
        inner: Backend,
        *,
        input_schema: Mapping[str, Any] | None = None,
        output_schema: Mapping[str, Any] | None = None,
        own: bool = False,
    ) -> None:
        """`own`: the model tells its schema itself and does not hold inputs to it."""
        self._inner = inner
        self._told = {"input_schema": input_schema, "output_schema": output_schema}
        self._schema = None if input_schema is None else InputSchema(input_schema)
        self._own = own and input_schema is None
        self._broken = ""

    def __getattr__(self, name: str) -> Any:
        """What some backends have beside the protocol: figures, exact counts."""
        return getattr(self._inner, name)

    @property
    def kind(self) -> str:
        return self._inner.kind

    async def start(self) -> None:
        await self._inner.start()

    async def close(self) -> None:
        await self._inner.close()

    def health(self) -> Health:
        """As the backend's; failed where the model's own schema is none."""
        health = self._inner.health()
        if self._own and health.status is Status.READY:
            self._models_own()
        return Health(Status.FAILED, self._broken) if self._broken else health

    def info(self) -> dict[str, Any]:
        """What the backend tells, with the schemas that the configuration gives."""
        own = cast(_Informed, self._inner).info() if hasattr(self._inner, "info") else {}
        return own | {name: dict(schema) for name, schema in self._told.items() if schema is not None}

    async def count_input(self, call: Call, *, model: str) -> int:
        call, _ = self._checked(call)
        return await self._inner.count_input(call, model=model) if _has_inputs(call) else 0

    async def stream(self, call: Call, *, model: str, max_output_tokens: int | None) -> AsyncGenerator[Delta]:
        call, failed = self._checked(call)
        if failed and not _has_inputs(call):
            yield Delta(whole=True, value=list(failed.values()), usage=Usage())
            return
        async for delta in self._inner.stream(call, model=model, max_output_tokens=max_output_tokens):
            if failed and delta.value is not None:
                delta = msgspec.structs.replace(delta, value=_merged(delta.value, failed))
            yield delta

    def _checked(self, call: Call) -> tuple[Call, dict[int, BadRequest]]:
        """The call with the inputs that fit, and the errors of the others by their place. Raises: BadRequest."""
        if self._own:
            self._models_own()
        if self._broken:
            raise Unavailable(
                f"The model {call.model!r} can't be used; its operator can see why.", internal=self._broken
            )
        schema = self._schema
        if schema is None or call.operation is not Operation.PREDICT:
            return call, {}
        inputs: Sequence[Any] = call.request.inputs
        failed: dict[int, BadRequest] = {}
        for place, value in enumerate(inputs):
            error = schema.error(value, f"inputs[{place}]")
            if error is not None:
                if not call.partial:
                    raise error
                failed[place] = error
        if not failed:
            return call, failed
        good = [value for place, value in enumerate(inputs) if place not in failed]
        return replace(call, request=msgspec.structs.replace(call.request, inputs=good)), failed

    def _models_own(self) -> None:
        """Read the model's schema once it is there. Raises nothing: a wrong one shows in `health`."""
        told = self.info().get("input_schema")
        if told is None:
            return
        self._own = False
        try:
            self._schema = InputSchema(told)
        except (ValueError, TypeError) as error:
            self._broken = f"The model's input_schema is no JSON Schema that can be used: {str(error).splitlines()[0]}"


def check_schema(schema: Mapping[str, Any] | None, what: str) -> None:
    """Raises: ValueError that names `what`, where the schema can't be used."""
    if schema is not None:
        try:
            InputSchema(schema)
        except ValueError as error:
            raise ValueError(f"{what} is no JSON Schema that can be used: {str(error).splitlines()[0]}") from None


def _merged(values: Sequence[Any], failed: Mapping[int, BadRequest]) -> list[Any]:
    good = iter(values)
    return [failed[place] if place in failed else next(good) for place in range(len(values) + len(failed))]


def _has_inputs(call: Call) -> bool:
    return call.operation is not Operation.PREDICT or bool(call.request.inputs)


def _path(parts: Sequence[str | int]) -> str:
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in parts)[:_LONGEST_MESSAGE]


def _refuse(uri: str) -> Any:
    raise ValueError(f"{uri} lies outside the schema")
