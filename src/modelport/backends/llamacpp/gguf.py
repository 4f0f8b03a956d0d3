"""Reads the header of a GGUF file: enough to say what is wrong with it before llama.cpp is asked to load it.

Source: the GGUF specification (ggml-org/ggml, docs/gguf.md), versions 2 and 3, little-endian.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

_MAGIC = b"GGUF"
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9
# More than any real file has; a broken length must not make us read for minutes.
_MAX_ENTRIES, _MAX_STRING_BYTES, _MAX_ARRAY = 10_000, 16_000_000, 4_000_000
_KV_BYTES_PER_VALUE = 2  # The cache is kept in 16-bit floats.
_WORK_BYTES = 200_000_000  # Compute buffers and the runtime, rounded up from what a small model was seen to use.


class BrokenModel(Exception):
    """The file can't be a model that llama.cpp loads; the text says why."""


@dataclass(frozen=True, slots=True)
class Header:
    """What the header tells."""

    architecture: str
    trained_context_tokens: int
    kv_bytes_per_token: int
    file_bytes: int

    def needed_bytes(self, context_tokens: int) -> int:
        """Memory that the model takes with room for `context_tokens` in all slots together, roughly."""
        return self.file_bytes + self.kv_bytes_per_token * context_tokens + _WORK_BYTES


def read_header(path: Path) -> Header:
    """The header of the model file. Raises: BrokenModel."""
    try:
        with path.open("rb") as file:
            if file.read(4) != _MAGIC:
                raise BrokenModel(f"{path} is no GGUF file")
            values = _read_values(file)
        size = path.stat().st_size
    except FileNotFoundError:
        raise BrokenModel(f"there is no model file {path}") from None
    except OSError as error:
        raise BrokenModel(f"the model file {path} can't be read: {error.strerror}") from error
    except (struct.error, UnicodeDecodeError, MemoryError) as error:
        raise BrokenModel(f"{path} is cut off or damaged inside its header") from error
    return _header(values, size)


def _header(values: dict[str, Any], size: int) -> Header:
    architecture = str(values.get("general.architecture", ""))

    def number(name: str, default: int) -> int:
        value = values.get(f"{architecture}.{name}", default)
        return max(value) if isinstance(value, list) and value else value if isinstance(value, int) else default

    heads = max(number("attention.head_count", 1), 1)
    head_size = number("embedding_length", 0) // heads
    widths = number("attention.key_length", head_size) + number("attention.value_length", head_size)
    per_token = number("block_count", 0) * number("attention.head_count_kv", heads) * widths * _KV_BYTES_PER_VALUE
    return Header(architecture, number("context_length", 0), per_token, size)


def _read_values(file: BinaryIO) -> dict[str, Any]:
    version, _tensors, entries = struct.unpack("<IQQ", file.read(20))
    if version not in (2, 3):
        raise BrokenModel(f"this is GGUF version {version}; versions 2 and 3 can be read")
    if entries > _MAX_ENTRIES:
        raise BrokenModel("the model file's header is damaged")
    values: dict[str, Any] = {}
    for _ in range(entries):
        name = _read_string(file)
        values[name] = _read_value(file, _unpack(file, "I"))
    return values


def _unpack(file: BinaryIO, code: str) -> Any:
    return struct.unpack(f"<{code}", file.read(struct.calcsize(f"<{code}")))[0]


def _read_string(file: BinaryIO) -> str:
    size = _unpack(file, "Q")
    if size > _MAX_STRING_BYTES:
        raise BrokenModel("the model file's header is damaged")
    return file.read(size).decode("utf-8", errors="replace")


def _read_value(file: BinaryIO, kind: int) -> Any:
    if kind == _STRING:
        return _read_string(file)
    if kind != _ARRAY:
        if kind not in _SCALARS:
            raise BrokenModel("the model file's header is damaged")
        return _unpack(file, _SCALARS[kind])
    item, count = _unpack(file, "I"), _unpack(file, "Q")
    if count > _MAX_ARRAY or item == _ARRAY:
        raise BrokenModel("the model file's header is damaged")
    if item == _STRING:
        for _ in range(count):
            file.seek(_unpack(file, "Q"), 1)
        return []
    code = _SCALARS.get(item)
    if code is None:
        raise BrokenModel("the model file's header is damaged")
    return list(struct.unpack(f"<{count}{code}", file.read(struct.calcsize(f"<{count}{code}"))))
