"""A complete JSON answer of an upstream: checked, its model renamed, its usage read, passed on as it is."""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Any

import msgspec

from modelport.backends.upstream.estimate import BYTES_PER_TOKEN, estimate_input
from modelport.backends.upstream.refusals import stream_error
from modelport.calls import Call, Delta, Operation, Usage
from modelport.dialect.openai import usage_from
from modelport.errors import UpstreamFailed

_MODEL = re.compile(rb'("model"\s*:\s*)("(?:[^"\\]|\\.)*")')


class _Answer(msgspec.Struct):
    """What is read of an answer; the rest is checked to be JSON and skipped."""

    model: str | None = None
    choices: list[msgspec.Raw] | None = None
    data: list[msgspec.Raw] | None = None
    usage: Any = None
    error: Any = None


_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(_Answer).decode


def read_answer(name: str, call: Call, body: bytes) -> Delta:
    """The whole answer as one delta, under the public name of the model.

    Usage that the upstream does not report is estimated from the answer's length.
    Raises: UpstreamFailed when the body is no answer to the call's operation; UpstreamRejected.
    """
    try:
        answer = _decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise _no_answer(name, str(error)) from None
    if answer.error:
        raise stream_error(name, answer.error)
    parts = answer.data if call.operation is Operation.EMBEDDING else answer.choices
    if parts is None:
        raise _no_answer(name, f"no choices or data in {body[:200]!r}")
    usage = usage_from(answer.usage)
    if usage is None:
        size_bytes = 0 if call.operation is Operation.EMBEDDING else sum(len(part) for part in parts)
        usage = Usage(estimate_input(call), -(-size_bytes // BYTES_PER_TOKEN), exact=False)
    return Delta(_renamed(body, answer.model, call.model), whole=True, usage=usage)


def _renamed(body: bytes, model: str | None, public: str) -> bytes:
    """`body` with its member `model` replaced. Only bare quotes are matched, and those are never inside a string."""
    if model is None or model == public:
        return body
    renamed = body.replace(_member(model), _member(public))
    if renamed != body:
        return renamed
    # Spaces around the colon, or escapes that we would not write.
    return _MODEL.sub(
        lambda found: found[1] + _encode(public) if msgspec.json.decode(found[2]) == model else found[0], body
    )


# Upstreams name a few models; what is dropped is only written again.
@lru_cache(maxsize=1024)
def _member(model: str) -> bytes:
    return b'"model":' + _encode(model)


def _no_answer(name: str, internal: str) -> UpstreamFailed:
    return UpstreamFailed(f"The model's server {name!r} sent something that is no answer", internal=internal)
