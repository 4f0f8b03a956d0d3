"""Reads tensors out of a safetensors file: a length, a JSON header and raw numbers. Nothing in it can run.

Source: the format's description in the safetensors repository (README, "Format").
"""

from __future__ import annotations

import json
import struct
from typing import Any

import numpy as np
from numpy.typing import NDArray

_DTYPES = {"F32": "<f4", "F16": "<f2", "F64": "<f8", "I64": "<i8", "I32": "<i4"}


class UnreadableTensors(ValueError):
    """The file is no safetensors file, or is cut short."""


def read_tensors(data: bytes) -> dict[str, NDArray[Any]]:
    """Every tensor by name, as views on `data`. Raises: UnreadableTensors."""
    try:
        (length,) = struct.unpack_from("<Q", data)
        header = json.loads(data[8 : 8 + length])
        rows = {name: row for name, row in header.items() if name != "__metadata__"}
        return {name: _tensor(data, 8 + length, row) for name, row in rows.items()}
    except (struct.error, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UnreadableTensors("the file is no safetensors file, or is cut short") from error


def _tensor(data: bytes, start: int, row: dict[str, Any]) -> NDArray[Any]:
    first, last = row["data_offsets"]
    if not 0 <= first <= last <= len(data) - start:
        raise UnreadableTensors("a tensor lies outside of the file")
    block = np.frombuffer(data[start + first : start + last], dtype=_DTYPES[row["dtype"]])
    return block.reshape(row["shape"])
