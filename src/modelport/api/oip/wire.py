"""Inference requests and answers of the protocol: JSON, and tensors as bytes behind it.

Source: Open Inference Protocol V2, "Inference" and "Binary Tensor Data Extension".
"""

from __future__ import annotations

from typing import Any, NamedTuple

import msgspec

from modelport.api.bodies import check_depth, decode
from modelport.api.oip.elements import check_tensor, read_json, write_json
from modelport.calls import Tensor
from modelport.errors import BadRequest
from modelport.requests import InferRequest

_encode = msgspec.json.Encoder().encode


class InputBody(msgspec.Struct):
    """One input tensor. `data` is a flat or nested array; in binary, `parameters.binary_data_size` stands for it."""

    name: str
    shape: list[int]
    datatype: str
    parameters: dict[str, Any] = {}
    data: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET


class OutputBody(msgspec.Struct):
    """An output that is wanted."""

    name: str
    parameters: dict[str, Any] = {}


class InferBody(msgspec.Struct):
    """An inference request: input tensors by name, and the outputs wanted (none: all)."""

    inputs: list[InputBody]
    outputs: list[OutputBody] = []
    id: str | None = None
    parameters: dict[str, Any] = {}


class Wanted(NamedTuple):
    """What a request says of its answer: the id to repeat, and which outputs come as bytes."""

    id: str | None
    binary: frozenset[str]
    binary_by_default: bool

    def is_binary(self, name: str) -> bool:
        return self.binary_by_default if not self.binary else name in self.binary


def parse(body: bytes, *, header_length: str | None, max_depth: int) -> tuple[InferRequest, Wanted]:
    """The tensors of a request. `header_length` is the value of `Inference-Header-Content-Length`.

    Tensors that came as bytes are views of the body. Raises: BadRequest that names the tensor.
    """
    head, rest = _split(body, header_length)
    check_depth(head, most=max_depth)
    parsed, _ = decode(head, InferBody, max_depth=max_depth)
    tensors, position = [], 0
    for given in parsed.inputs:
        check_tensor(given.name, given.datatype, given.shape)
        size = given.parameters.get("binary_data_size")
        if size is None:
            tensors.append(_from_json(given))
            continue
        if type(size) is not int or size < 0 or position + size > len(rest) or given.data is not msgspec.UNSET:
            raise BadRequest(f"{given.name!r}: its binary_data_size does not fit the body.", param=given.name)
        tensors.append(Tensor(given.name, given.datatype, tuple(given.shape), rest[position : position + size]))
        position += size
    if position != len(rest):
        raise BadRequest(f"The body has {len(rest) - position} bytes more than its tensors.", param="inputs")
    request = InferRequest(
        inputs=tensors, outputs=[output.name for output in parsed.outputs], parameters=parsed.parameters
    )
    return request, _wanted(parsed)


def render(tensors: list[Tensor], wanted: Wanted, *, model: str, version: str) -> tuple[bytes | memoryview, int | None]:
    """The body of an answer, and the length of its JSON where tensors follow it as bytes."""
    outputs: list[dict[str, Any]] = []
    tails: list[bytes | memoryview] = []
    for tensor in tensors:
        body: dict[str, Any] = {"name": tensor.name, "datatype": tensor.datatype, "shape": tensor.shape}
        if wanted.is_binary(tensor.name):
            body["parameters"] = {"binary_data_size": len(tensor.data)}
            tails.append(tensor.data)
        else:
            body["data"] = write_json(tensor)
        outputs.append(body)
    head: dict[str, Any] = {"model_name": model, "model_version": version, "outputs": outputs}
    if wanted.id is not None:
        head["id"] = wanted.id
    encoded = _encode(head)
    return (b"".join([encoded, *tails]), len(encoded)) if tails else (encoded, None)


def _split(body: bytes, header_length: str | None) -> tuple[bytes, memoryview]:
    if header_length is None:
        return body, memoryview(b"")
    length = int(header_length) if header_length.isascii() and header_length.isdigit() else -1
    if not 0 < length <= len(body):
        raise BadRequest("Inference-Header-Content-Length is not the length of the body's JSON.")
    return body[:length], memoryview(body)[length:]


def _from_json(given: InputBody) -> Tensor:
    if given.data is msgspec.UNSET:
        raise BadRequest(f"{given.name!r} has neither data nor a binary_data_size.", param=given.name)
    data = read_json(given.name, given.datatype, given.shape, bytes(given.data))
    return Tensor(given.name, given.datatype, tuple(given.shape), data)


def _wanted(parsed: InferBody) -> Wanted:
    for output in parsed.outputs:
        if output.parameters.get("classification"):
            raise BadRequest(
                f"{output.name!r}: the classification extension is not served; take the scores.", param="outputs"
            )
    said = {output.name: output.parameters.get("binary_data") for output in parsed.outputs}
    by_default = parsed.parameters.get("binary_data_output") is True
    if not any(isinstance(word, bool) for word in said.values()):
        return Wanted(parsed.id, frozenset(), by_default)
    names = frozenset(name for name, word in said.items() if (by_default if word is None else word is True))
    # An empty set would mean that nothing was said.
    return Wanted(parsed.id, names, False)
