"""Elements of tensors: the Open Inference Protocol's bytes as arrays, and back.

Source: Open Inference Protocol V2, "Tensor Data Types" and "Binary Tensor Data Extension".
"""

from __future__ import annotations

import math
import struct
from typing import Any

import numpy as np

from modelport.backends.onnx.engine import Array
from modelport.calls import Tensor
from modelport.errors import BadRequest

# numpy's name, as a port has it, to the protocol's.
DATATYPES = {
    "bool": "BOOL",
    **{f"uint{bits}": f"UINT{bits}" for bits in (8, 16, 32, 64)},
    **{f"int{bits}": f"INT{bits}" for bits in (8, 16, 32, 64)},
    **{f"float{bits}": f"FP{bits}" for bits in (16, 32, 64)},
    "string": "BYTES",
}
_LITTLE = {wire: np.dtype(name).newbyteorder("<") for name, wire in DATATYPES.items() if wire != "BYTES"}
ITEM_BYTES = {wire: dtype.itemsize for wire, dtype in _LITTLE.items()}
_LENGTH = struct.Struct("<I")


def read_elements(tensor: Tensor) -> Array:
    """The tensor as an array: a view of its bytes wherever the engine can read them there.

    The length of the data must have been checked, except for BYTES. Raises: BadRequest.
    """
    if tensor.datatype == "BYTES":
        return _read_texts(tensor)
    if tensor.datatype == "BOOL" and bytes(tensor.data).translate(None, b"\x00\x01"):
        raise BadRequest(f"{tensor.name!r}: a BOOL is one byte, 0 or 1.", param=tensor.name)
    dtype = _LITTLE[tensor.datatype]
    flat: Array = np.frombuffer(tensor.data, dtype)
    if not flat.flags.aligned or not dtype.isnative:
        # The engine's kernels may load whole words; a copy is aligned.
        flat = flat.astype(dtype.newbyteorder("="))
    return flat.reshape(tensor.shape)


def write_elements(array: Array) -> bytes | memoryview:
    """An output's elements, row-major and little-endian: a view of the array where that is how they lie."""
    if array.dtype.kind in "OUS":
        return _write_texts(array)
    little = np.ascontiguousarray(array, array.dtype.newbyteorder("<"))
    return little.data.cast("B") if little.size else b""


def _read_texts(tensor: Tensor) -> Array:
    count, data, position = math.prod(tensor.shape), memoryview(tensor.data), 0
    texts: list[Any] = []
    try:
        while len(texts) < count:
            (length,) = _LENGTH.unpack_from(data, position)
            position += _LENGTH.size + length
            if position > len(data):
                raise ValueError("a text reaches beyond the data")
            texts.append(str(data[position - length : position], "utf-8"))
    except (struct.error, ValueError) as error:
        found = "an element is no UTF-8 text" if isinstance(error, UnicodeDecodeError) else "the data is cut short"
        raise BadRequest(f"{tensor.name!r}: {found}.", param=tensor.name, internal=repr(error)) from error
    if position != len(data):
        raise BadRequest(f"{tensor.name!r} has more data than {count} elements.", param=tensor.name)
    array = np.empty(count, object)
    array[:] = texts
    return array.reshape(tensor.shape)


def _write_texts(array: Array) -> bytes:
    texts = [text if isinstance(text, bytes) else str(text).encode() for text in array.reshape(-1).tolist()]
    return b"".join(part for text in texts for part in (_LENGTH.pack(len(text)), text))
