"""Embeddings in OpenAI's form out of batchEmbedContents."""

from __future__ import annotations

import base64
from array import array
from typing import Any

import msgspec

from modelport.backends.upstream.estimate import estimate_input
from modelport.calls import Call, Delta, Usage
from modelport.errors import BadRequest, UpstreamFailed
from modelport.requests import EmbeddingRequest


class _Embedding(msgspec.Struct):
    values: list[float]


class _Usage(msgspec.Struct):
    promptTokenCount: int = 0


class _Answer(msgspec.Struct):
    embeddings: list[_Embedding]
    usageMetadata: _Usage | None = None


_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(_Answer).decode


def embeddings_body(request: EmbeddingRequest, *, model: str) -> dict[str, Any]:
    """The body of a batch, one request for each text. Raises: BadRequest."""
    texts = [request.input] if isinstance(request.input, str) else request.input
    if not texts or not all(isinstance(text, str) and text for text in texts):
        raise BadRequest("This model takes texts that are not empty, and no tokens.", param="input")
    extra = {} if request.dimensions is None else {"outputDimensionality": request.dimensions}
    return {
        "requests": [{"model": f"models/{model}", "content": {"parts": [{"text": text}]}, **extra} for text in texts]
    }


def read_embeddings(name: str, call: Call, body: bytes) -> Delta:
    """The whole answer as one delta. Tokens that Gemini does not report are estimated. Raises: UpstreamFailed."""
    try:
        answer = _decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise UpstreamFailed(
            f"The model's server {name!r} sent something that is no answer", internal=str(error)
        ) from None
    reported = answer.usageMetadata.promptTokenCount if answer.usageMetadata is not None else 0
    usage = Usage(reported) if reported > 0 else Usage(estimate_input(call), exact=False)
    packed = call.request.encoding_format == "base64"
    rows = [
        {"object": "embedding", "index": index, "embedding": _packed(row.values) if packed else row.values}
        for index, row in enumerate(answer.embeddings)
    ]
    tokens = {"prompt_tokens": usage.input_tokens, "total_tokens": usage.input_tokens}
    whole = {"object": "list", "data": rows, "model": call.model, "usage": tokens}
    return Delta(_encode(whole), whole=True, usage=usage)


def _packed(values: list[float]) -> str:
    """Little-endian 32-bit floats in base64, as OpenAI packs them."""
    return base64.b64encode(array("f", values).tobytes()).decode()
