"""Elements of tensors as JSON has them, and as bytes. Pure, and without numpy, which a gateway may lack.

Source: Open Inference Protocol V2, "Tensor Data" and "Tensor Data Types".
"""

from __future__ import annotations

import math
import struct
import sys
from array import array
from collections.abc import Iterator, Sequence
from typing import Any

import msgspec

from modelport.calls import Tensor
from modelport.errors import BadRequest

# The type that the elements have in JSON, and how many bytes one has in binary.
_JSON_TYPES: dict[str, type] = {
    "BOOL": bool,
    **{f"{sign}INT{bits}": int for sign in ("", "U") for bits in (8, 16, 32, 64)},
    **{f"FP{bits}": float for bits in (16, 32, 64)},
    "BYTES": str,
}
_ARRAY_CODES = {
    "BOOL": "B", "INT8": "b", "UINT8": "B", "INT16": "h", "UINT16": "H", "INT32": "i", "UINT32": "I", "INT64": "q",
    "UINT64": "Q", "FP32": "f", "FP64": "d",
}  # fmt: skip
_LENGTH = struct.Struct("<I")
# A tensor of more dimensions is a mistake.
_MOST_DIMENSIONS = 16
_decoders: dict[tuple[str, int], msgspec.json.Decoder[Any]] = {}


def check_tensor(name: str, datatype: str, shape: Sequence[int]) -> None:
    """Raises: BadRequest for a datatype that the protocol does not have, or a shape that can't be."""
    if datatype not in _JSON_TYPES:
        raise BadRequest(f"{name!r} has the datatype {datatype[:20]!r}; there is {', '.join(_JSON_TYPES)}.", param=name)
    if len(shape) > _MOST_DIMENSIONS or any(size < 0 for size in shape):
        raise BadRequest(f"{name!r} has a shape that no tensor has: {list(shape)[:_MOST_DIMENSIONS]}.", param=name)


def read_json(name: str, datatype: str, shape: Sequence[int], data: bytes) -> bytes:
    """The bytes of a tensor whose elements came as a JSON array, flat or nested like its shape.

    Raises: BadRequest when elements are of another type, out of range, or not as many as the shape says.
    """
    nested = data.lstrip()[1:].lstrip().startswith(b"[")
    depth = max(len(shape), 1) if nested else 1
    try:
        elements = _decoder(datatype, depth).decode(data)
        if nested:
            elements = list(_flat(elements, shape, name))
        if len(elements) != math.prod(shape):
            raise _miscounted(name, len(elements), shape)
        return _pack(datatype, elements)
    except msgspec.ValidationError as error:
        raise BadRequest(f"The data of {name!r} is not {datatype}: {error}.", param=name) from None
    except (OverflowError, struct.error):
        raise BadRequest(f"The data of {name!r} has a value that {datatype} can't hold.", param=name) from None


def write_json(tensor: Tensor) -> list[Any]:
    """The elements, flat and row-major. Raises: ValueError for texts that are no UTF-8."""
    if tensor.datatype == "BYTES":
        return list(_texts(memoryview(tensor.data)))
    if tensor.datatype == "FP16":
        return list(struct.unpack(f"<{len(tensor.data) // 2}e", tensor.data))
    elements = array(_ARRAY_CODES[tensor.datatype])
    elements.frombytes(tensor.data)
    if sys.byteorder == "big":
        elements.byteswap()
    return [bool(element) for element in elements] if tensor.datatype == "BOOL" else elements.tolist()


def _decoder(datatype: str, depth: int) -> msgspec.json.Decoder[Any]:
    decoder = _decoders.get((datatype, depth))
    if decoder is None:
        type_: Any = _JSON_TYPES[datatype]
        for _ in range(depth):
            type_ = list[type_]
        decoder = _decoders[datatype, depth] = msgspec.json.Decoder(type_)
    return decoder


def _flat(elements: list[Any], shape: Sequence[int], name: str) -> Iterator[Any]:
    """The innermost elements of lists that are nested exactly like the shape."""
    if not shape or len(elements) != shape[0]:
        raise _miscounted(name, len(elements), shape)
    if len(shape) == 1:
        yield from elements
        return
    for inner in elements:
        yield from _flat(inner, shape[1:], name)


def _miscounted(name: str, found: int, shape: Sequence[int]) -> BadRequest:
    return BadRequest(f"The data of {name!r} has {found} elements where its shape has {list(shape)}.", param=name)


def _pack(datatype: str, elements: list[Any]) -> bytes:
    if datatype == "BYTES":
        texts = [element.encode() for element in elements]
        return b"".join(part for text in texts for part in (_LENGTH.pack(len(text)), text))
    if datatype == "FP16":
        return struct.pack(f"<{len(elements)}e", *elements)
    packed = array(_ARRAY_CODES[datatype], elements)
    if sys.byteorder == "big":
        packed.byteswap()
    return packed.tobytes()


def _texts(data: memoryview) -> Iterator[str]:
    position = 0
    while position < len(data):
        start = position + _LENGTH.size
        position = start + int.from_bytes(data[position:start], "little")
        if position > len(data):
            raise ValueError("a text reaches beyond the data")
        yield str(data[start:position], "utf-8")
