"""Looks through an ONNX file before the engine opens it: nothing in it may lead to another file.

ONNX lets a tensor live in a file of any name beside the model ("external data"), which would let a model that was
fetched from somewhere read files of this machine. Such models are refused; so is a file that is a link out of its
folder.

Source: onnx.proto of ONNX 1.19 (field numbers); Protocol Buffers encoding guide.
"""

from __future__ import annotations

import mmap
from pathlib import Path

from modelport.backends.onnx.options import UnusableModel

_MODEL, _GRAPH, _NODE, _ATTRIBUTE, _TENSOR, _SPARSE, _FUNCTION, _TRAINING = range(8)
# Message type -> field number -> type of the message that it holds. Only the ways that lead to a tensor.
_CHILDREN: dict[int, dict[int, int]] = {
    _MODEL: {7: _GRAPH, 20: _TRAINING, 25: _FUNCTION},
    _GRAPH: {1: _NODE, 5: _TENSOR, 15: _SPARSE},
    _NODE: {5: _ATTRIBUTE},
    _ATTRIBUTE: {5: _TENSOR, 6: _GRAPH, 10: _TENSOR, 11: _GRAPH, 22: _SPARSE, 23: _SPARSE},
    _TENSOR: {},
    _SPARSE: {1: _TENSOR, 2: _TENSOR},
    _FUNCTION: {7: _NODE, 11: _ATTRIBUTE},
    _TRAINING: {1: _GRAPH, 2: _GRAPH},
}
_EXTERNAL_DATA, _DATA_LOCATION = 13, 14
# Graphs in attributes of nodes of graphs: real models (loops, branches) go three deep.
_MAX_DEPTH = 64


def check_file(path: Path) -> None:
    """Raises: UnusableModel when the file is missing, is a link out of its folder, is no ONNX, or has external data."""
    if not path.is_file():
        raise UnusableModel(f"there is no file {path}")
    if not path.resolve().is_relative_to(path.parent.resolve()):
        raise UnusableModel(f"{path} is a link that leads out of its folder: name the real file")
    if path.stat().st_size == 0:
        raise UnusableModel(f"{path} is empty")
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        try:
            found_graph = _walk(data)
        except (IndexError, ValueError) as error:
            raise UnusableModel(f"{path.name} is no ONNX file, or is cut short") from error
    if not found_graph:
        raise UnusableModel(f"{path.name} is no ONNX file: it has no graph")


def _walk(data: mmap.mmap) -> bool:
    found_graph = False
    pending = [(_MODEL, 0, len(data), 0)]
    while pending:
        kind, position, end, depth = pending.pop()
        if depth > _MAX_DEPTH:
            raise ValueError("nested too deep")
        children = _CHILDREN[kind]
        while position < end:
            tag, position = _varint(data, position)
            field, wire_type = tag >> 3, tag & 7
            if kind == _TENSOR and field in (_EXTERNAL_DATA, _DATA_LOCATION):
                _check_location(data, field, position)
            start, position = _skip(data, position, wire_type)
            if position > end:
                raise ValueError("a part reaches beyond its whole")
            if wire_type == 2 and field in children:
                found_graph = found_graph or kind == _MODEL
                pending.append((children[field], start, position, depth + 1))
    return found_graph


def _check_location(data: mmap.mmap, field: int, position: int) -> None:
    # 0 is the default location, inside of the file; some exporters write it out.
    if field == _DATA_LOCATION and _varint(data, position)[0] == 0:
        return
    raise UnusableModel("the model keeps its weights in another file, which is refused: save it as one file")


def _skip(data: mmap.mmap, position: int, wire_type: int) -> tuple[int, int]:
    """Where a field's content begins and ends."""
    if wire_type == 0:
        return position, _varint(data, position)[1]
    if wire_type == 1:
        return position, position + 8
    if wire_type == 2:
        length, position = _varint(data, position)
        return position, position + length
    if wire_type == 5:
        return position, position + 4
    raise ValueError("unknown wire type")


def _varint(data: mmap.mmap, position: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
    raise ValueError("a number is too long")
