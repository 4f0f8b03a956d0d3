"""Writes ONNX files: a graph is built node by node and becomes bytes that are the same everywhere.

The few protocol-buffer messages of ONNX that a default model needs are written by hand, in field order, so that
neither the `onnx` package nor the version of a serialiser decides the bytes.

Source: onnx.proto of ONNX 1.19 (field numbers), Protocol Buffers encoding guide (varints, tags, packed fields).
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.generic]
Attribute = int | float | str | list[int]

# IR version 10 is the first that knows opset 21 to 23; every runtime we support (1.31 and later) reads it.
_IR_VERSION = 10
_VARINT, _BYTES, _FIXED32 = 0, 2, 5
_ATTRIBUTE_FLOAT, _ATTRIBUTE_INT, _ATTRIBUTE_STRING, _ATTRIBUTE_INTS = 1, 2, 3, 7
_TENSOR_TYPES = {"float32": 1, "uint8": 2, "int8": 3, "int32": 6, "int64": 7, "bool": 9}


class GraphBuilder:
    """An ONNX graph under construction. Values are named by the strings that the methods return."""

    def __init__(self, *, opset: int) -> None:
        self._opset = opset
        self._nodes: list[bytes] = []
        self._initializers: list[bytes] = []
        self._inputs: list[bytes] = []
        self._outputs: list[bytes] = []
        self._constants: dict[tuple[str, tuple[int, ...], bytes], str] = {}

    def input(self, name: str, dtype: str, shape: Iterable[int | str]) -> str:
        """A value that the caller of the model passes; a dimension given as a word may have any size."""
        self._inputs.append(_value_info(name, dtype, shape))
        return name

    def output(self, name: str, dtype: str, shape: Iterable[int | str]) -> None:
        """Declare an existing value as one that the model returns."""
        self._outputs.append(_value_info(name, dtype, shape))

    def constant(self, array: Array, name: str = "") -> str:
        """The name of a constant tensor; equal ones are stored once."""
        content = np.ascontiguousarray(array)
        little = content.astype(content.dtype.newbyteorder("<"), copy=False).tobytes()
        key = (content.dtype.name, array.shape, little)
        if key not in self._constants:
            name = name or f"c{len(self._constants)}"
            self._constants[key] = name
            self._initializers.append(_tensor(name, content.dtype.name, array.shape, little))
        return self._constants[key]

    def node(self, op: str, *inputs: str, name: str = "", **attributes: Attribute) -> str:
        """Apply an operator with one output and return that output's name."""
        name = name or f"v{len(self._nodes)}"
        return self.nodes(op, *inputs, names=[name], **attributes)[0]

    def nodes(self, op: str, *inputs: str, names: list[str], **attributes: Attribute) -> list[str]:
        """Apply an operator with several outputs; returns `names`."""
        parts = [_text(1, value) for value in inputs]
        parts += [_text(2, value) for value in names]
        parts += [_text(3, f"n{len(self._nodes)}"), _text(4, op)]
        parts += [_message(5, _attribute(key, attributes[key])) for key in sorted(attributes)]
        self._nodes.append(b"".join(parts))
        return names

    def build(self, name: str, *, metadata: Mapping[str, str]) -> bytes:
        """The whole file. `metadata` is what a runtime hands out as the model's own properties."""
        graph = b"".join(
            [
                *(_message(1, node) for node in self._nodes),
                _text(2, name),
                *(_message(5, tensor) for tensor in self._initializers),
                *(_message(11, value) for value in self._inputs),
                *(_message(12, value) for value in self._outputs),
            ]
        )
        properties = [_message(14, _text(1, key) + _text(2, metadata[key])) for key in sorted(metadata)]
        opset = _message(8, _text(1, "") + _integer(2, self._opset))
        head = _integer(1, _IR_VERSION) + _text(2, "modelport")
        return head + _message(7, graph) + opset + b"".join(properties)


def _value_info(name: str, dtype: str, shape: Iterable[int | str]) -> bytes:
    dims = [_message(1, _text(2, dim) if isinstance(dim, str) else _integer(1, dim)) for dim in shape]
    tensor = _integer(1, _TENSOR_TYPES[dtype]) + _message(2, b"".join(dims))
    return _text(1, name) + _message(2, _message(1, tensor))


def _tensor(name: str, dtype: str, shape: tuple[int, ...], raw: bytes) -> bytes:
    dims = b"".join(_integer(1, dim) for dim in shape)
    return dims + _integer(2, _TENSOR_TYPES[dtype]) + _text(8, name) + _message(9, raw)


def _attribute(name: str, value: Attribute) -> bytes:
    head = _text(1, name)
    if isinstance(value, float):
        return head + _tag(2, _FIXED32) + struct.pack("<f", value) + _integer(20, _ATTRIBUTE_FLOAT)
    if isinstance(value, int):
        return head + _integer(3, value) + _integer(20, _ATTRIBUTE_INT)
    if isinstance(value, str):
        return head + _text(4, value) + _integer(20, _ATTRIBUTE_STRING)
    return head + b"".join(_integer(8, item) for item in value) + _integer(20, _ATTRIBUTE_INTS)


def _tag(field: int, wire_type: int) -> bytes:
    return _varint(field << 3 | wire_type)


def _integer(field: int, value: int) -> bytes:
    return _tag(field, _VARINT) + _varint(value & 0xFFFF_FFFF_FFFF_FFFF)


def _text(field: int, value: str) -> bytes:
    return _message(field, value.encode())


def _message(field: int, content: bytes) -> bytes:
    return _tag(field, _BYTES) + _varint(len(content)) + content


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)
