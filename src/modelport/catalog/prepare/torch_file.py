"""Reads the tensors of a PyTorch checkpoint without PyTorch, and without running what the file says.

A checkpoint is a pickle, and a pickle can name any function. The unpickler here knows five names (the ordered
dictionary, the tensor builder and three kinds of storage) and refuses every other, so a hostile file ends in an
error. Only the file format before PyTorch 1.6 is read (five pickles, then the raw storages), which is what the
default model comes in.
"""

from __future__ import annotations

import collections
import io
import pickle  # nosec: only through the restricted unpickler below
import struct
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

_MAGIC = 0x1950A86A20F9469CFC6C
_PROTOCOL_VERSION = 1001
_STORAGES = {"FloatStorage": "<f4", "DoubleStorage": "<f8", "LongStorage": "<i8"}


class UnreadableCheckpoint(ValueError):
    """The file is no checkpoint of the kind that is read here, or names something that is refused."""


class _Storage:
    """A block of numbers, filled after the pickles have named it."""

    def __init__(self, dtype: str, count: int) -> None:
        self.array = np.zeros(count, dtype=dtype)


class _Tensor:
    """A view on a storage: resolved once the numbers are there."""

    def __init__(self, storage: Any, offset: Any, shape: Any, stride: Any) -> None:
        if not isinstance(storage, _Storage):
            raise UnreadableCheckpoint("a tensor has no storage")
        self.storage, self.offset, self.shape, self.stride = storage, int(offset), tuple(shape), tuple(stride)

    def read(self) -> NDArray[Any]:
        block = self.storage.array
        last = self.offset + sum((size - 1) * step for size, step in zip(self.shape, self.stride, strict=True))
        negative = self.offset < 0 or any(part < 0 for part in (*self.shape, *self.stride))
        if negative or 0 in self.shape or last >= block.size:
            raise UnreadableCheckpoint("a tensor reaches beyond its storage")
        strides = tuple(step * block.itemsize for step in self.stride)
        return np.lib.stride_tricks.as_strided(block[self.offset :], self.shape, strides, writeable=False).copy()


def _rebuild_tensor(storage: Any, offset: Any, shape: Any, stride: Any, *_rest: Any) -> _Tensor:
    return _Tensor(storage, offset, shape, stride)


class _TensorUnpickler(pickle.Unpickler):
    """Knows tensors and dictionaries, and nothing else in the world."""

    def __init__(self, file: BinaryIO) -> None:
        super().__init__(file)
        self.storages: dict[str, _Storage] = {}

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("collections", "OrderedDict"):
            return collections.OrderedDict
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return _rebuild_tensor
        if module == "torch" and name in _STORAGES:
            return name
        raise UnreadableCheckpoint(f"the file names {module}.{name}, which is refused")

    def persistent_load(self, pid: Any) -> _Storage:
        match pid:
            case ("storage", str(kind), str(key), _, int(count), None) if kind in _STORAGES and count >= 0:
                return self.storages.setdefault(key, _Storage(_STORAGES[kind], count))
        raise UnreadableCheckpoint("the file refers to something that is no plain storage")


def read_state_dict(data: bytes) -> dict[str, NDArray[Any]]:
    """Every tensor of the checkpoint by name. Raises: UnreadableCheckpoint."""
    file = io.BytesIO(data)
    try:
        header = [_TensorUnpickler(file).load() for _ in range(3)]
        if header[:2] != [_MAGIC, _PROTOCOL_VERSION]:
            raise UnreadableCheckpoint("the file is no PyTorch checkpoint of the old format")
        tensors = _TensorUnpickler(file)
        state = tensors.load()
        keys = _TensorUnpickler(file).load()
        for key in keys:
            _fill(tensors.storages[key], file)
        return {name: value.read() for name, value in state.items() if isinstance(value, _Tensor)}
    except (pickle.UnpicklingError, EOFError, KeyError, TypeError, AttributeError, IndexError, struct.error) as error:
        raise UnreadableCheckpoint("the file is no PyTorch checkpoint, or is cut short") from error


def _fill(storage: _Storage, file: BinaryIO) -> None:
    (count,) = struct.unpack("<q", file.read(8))
    if count != storage.array.size:
        raise UnreadableCheckpoint("a storage has another size than the file says")
    raw = file.read(storage.array.nbytes)
    if len(raw) != storage.array.nbytes:
        raise UnreadableCheckpoint("the file is cut short")
    storage.array[:] = np.frombuffer(raw, dtype=storage.array.dtype)
