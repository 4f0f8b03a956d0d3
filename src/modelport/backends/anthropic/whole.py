"""A complete message of an upstream: checked, its usage read, passed on as it is or as chat chunks."""

from __future__ import annotations

from typing import Any

import msgspec

from modelport.backends.upstream.refusals import stream_error
from modelport.calls import Call, Delta
from modelport.dialect.anthropic.to_chunks import ChunkTranslator, events_of
from modelport.dialect.anthropic.vocabulary import usage_from
from modelport.dialect.openai import ChunkWriter
from modelport.errors import UpstreamFailed

_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder().decode
_decode_members = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode


def read_original(name: str, call: Call, body: bytes) -> Delta:
    """The message itself under the public name of the model, for a caller who speaks this dialect.

    Raises: UpstreamFailed when the body is no message; UpstreamRejected.
    """
    message = _message(name, body)
    usage = usage_from(message["usage"])
    if message.get("model") != call.model:
        # Member by member: a tool's input may have a member of that name too.
        body = _encode({**_decode_members(body), "model": call.model})
    return Delta(body, whole=True, usage=usage, original=True)


def read_translated(name: str, body: bytes, writer: ChunkWriter) -> Delta:
    """The message as chat chunks, which the door folds. Raises: UpstreamFailed, UpstreamRejected."""
    message = _message(name, body)
    translator = ChunkTranslator(writer)
    return Delta(b"".join(map(translator.feed, events_of(message))), usage=usage_from(message["usage"]))


def _message(name: str, body: bytes) -> dict[str, Any]:
    try:
        message = _decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise _no_message(name, str(error)) from None
    if isinstance(message, dict) and message.get("error"):
        raise stream_error(name, message["error"])
    content = message.get("content") if isinstance(message, dict) else None
    if not isinstance(content, list) or not all(isinstance(block, dict) for block in content):
        raise _no_message(name, f"no content in {body[:200]!r}")
    if usage_from(message.get("usage")) is None:
        # Without it nothing can be charged, and every server of this dialect reports it.
        raise _no_message(name, f"no usage in {body[:200]!r}")
    return message  # type: ignore[no-any-return]


def _no_message(name: str, internal: str) -> UpstreamFailed:
    return UpstreamFailed(f"The model's server {name!r} sent something that is no answer", internal=internal)
