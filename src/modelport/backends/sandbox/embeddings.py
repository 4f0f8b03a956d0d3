"""Vectors out of a hash: the same text gets the same one, and of length 1; they mean nothing."""

from __future__ import annotations

import base64
import hashlib
import math
import struct
from typing import Any

import msgspec

from modelport.backends.sandbox.tokens import count_input, prompts_of
from modelport.calls import Call, Delta, Usage
from modelport.errors import BadRequest

DEFAULT_DIMENSIONS = 256
MAX_DIMENSIONS = 4_096


def embed(call: Call) -> Delta:
    """The whole answer to an embedding call. Raises: BadRequest for too many dimensions."""
    dimensions = call.request.dimensions or DEFAULT_DIMENSIONS
    if dimensions > MAX_DIMENSIONS:
        raise BadRequest(f"The sandbox makes vectors of at most {MAX_DIMENSIONS} dimensions", param="dimensions")
    packed = call.request.encoding_format == "base64"
    data = []
    for index, text in enumerate(prompts_of(call.request.input)):
        vector: Any = unit_vector(text, dimensions)
        if packed:
            vector = base64.b64encode(struct.pack(f"<{dimensions}f", *vector)).decode()
        data.append({"object": "embedding", "index": index, "embedding": vector})
    tokens = count_input(call)
    usage = {"prompt_tokens": tokens, "total_tokens": tokens}
    body = {"object": "list", "data": data, "model": call.model, "usage": usage}
    return Delta(msgspec.json.encode(body), whole=True, usage=Usage(input_tokens=tokens))


def unit_vector(text: str | list[int], dimensions: int) -> list[float]:
    """The vector of `text`, of Euclidean length 1."""
    key = text.encode() if isinstance(text, str) else msgspec.json.encode(text)
    numbers = struct.unpack(f"<{dimensions}i", hashlib.shake_256(key).digest(4 * dimensions))
    length = math.sqrt(sum(number * number for number in numbers)) or 1.0
    return [number / length for number in numbers]
