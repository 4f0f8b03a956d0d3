"""An upstream's stream of Messages events, made into the one our caller asked for. Pure: bytes in, bytes out.

To a caller who speaks the same dialect, a read that holds nothing but deltas passes untouched; what tells the model's
name, the usage or the end is decoded. To a caller of OpenAI's dialect every event is translated.
"""

from __future__ import annotations

from typing import Any

import msgspec

from modelport.backends.upstream.frames import MAX_EVENT_BYTES, Frames, frame_of
from modelport.backends.upstream.refusals import stream_error
from modelport.calls import Usage
from modelport.dialect.anthropic.to_chunks import ChunkTranslator
from modelport.dialect.anthropic.vocabulary import usage_from
from modelport.dialect.anthropic.wire import Event, write
from modelport.errors import ModelportError, UpstreamFailed

# What is charged to a caller who hangs up before the server has told: English averages four bytes a token.
BYTES_PER_TOKEN = 4
# A delta without its text, as Anthropic writes it.
_ENVELOPE_BYTES = 118
_DELTA = b"event: content_block_delta\n"
# Signatures are long, and no output of the model that anybody counts.
_SIGNATURE = b'"signature_delta"'
_decode = msgspec.json.Decoder().decode


class MessageStream:
    """One upstream stream on its way to one caller.

    `feed` returns what to pass on, without the terminal event. `done` is set by that event, `error` by whatever ends
    the stream before it; what `feed` returned before still counts. `pieces` counts the deltas with model output.
    """

    __slots__ = (
        "_finished",
        "_frames",
        "_most_tokens",
        "_name",
        "_output_bytes",
        "_public_model",
        "_told",
        "_translator",
        "_usage",
        "done",
        "error",
        "original",
        "pieces",
    )

    def __init__(self, name: str, *, public_model: str, translator: ChunkTranslator | None, most_tokens: int) -> None:
        """`translator` is None for a caller who speaks Anthropic's dialect. `most_tokens` is the bound that the server
        was given, which no estimate may exceed."""
        self._name = name
        self._public_model = public_model
        self._translator = translator
        self.original = translator is None
        self._frames = Frames()
        self._output_bytes = 0
        self._most_tokens = most_tokens
        self._usage: Usage | None = None
        # Whether the usage is the last word: the server tells it with the reason to stop.
        self._told = False
        self._finished = False
        self.done = False
        self.error: ModelportError | None = None
        self.pieces = 0

    def feed(self, data: bytes) -> bytes:
        """What `data` completes, ready to be passed on; an incomplete event waits for its rest."""
        data = self._frames.complete(data)
        if self._frames.overflow:
            self._fail(f"sent an event larger than {MAX_EVENT_BYTES} bytes")
        if not data:
            return b""
        count = data.count(b"\n\n")
        if self._translator is None and data.count(_DELTA) == count and _SIGNATURE not in data:
            self.pieces += count
            self._output_bytes += max(len(data) - count * _ENVELOPE_BYTES, count)
            return data
        return self._parsed(data)

    def end(self, *, input_tokens: int) -> bytes:
        """What is still to be passed on when the upstream has ended; sets `error` where it ended too early."""
        tail = self._frames.rest()
        last = self._parsed(tail) if tail and not self.done and self.error is None else b""
        if self.error is None and not (self.done or self._finished):
            self._fail("ended its answer too early", internal=f"its last bytes: {tail[:200]!r}")
        if self._translator is not None and self.error is None:
            last += self._translator.end(self.count(input_tokens))
        return last

    def count(self, input_tokens: int) -> Usage:
        """The usage so far: what the server told, and of what it has not told yet an estimate."""
        told = self._usage
        if told is not None and self._told:
            return told
        output = min(-(-self._output_bytes // BYTES_PER_TOKEN), self._most_tokens)
        if told is None:
            return Usage(input_tokens, output, exact=False)
        return Usage(told.input_tokens, max(output, told.output_tokens), told.cached_tokens, exact=False)

    def _parsed(self, data: bytes) -> bytes:
        out = []
        for frame in data.split(b"\n\n"):
            if self.done or self.error is not None:
                break
            name, payload = frame_of(frame)
            if payload:
                out.append(self._event(frame, payload, named_error=name == b"error"))
        return b"".join(out)

    def _event(self, frame: bytes, payload: bytes, *, named_error: bool) -> bytes:
        try:
            event = _decode(payload)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            self._fail("sent an event that is not JSON", internal=str(error))
            return b""
        if not isinstance(event, dict):
            self._fail("sent an event that is none of Anthropic's")
            return b""
        kind = event.get("type")
        if kind == "error" or named_error:
            self.error = stream_error(self._name, event.get("error") or event)
            return b""
        if kind == "message_stop":
            self.done = True
            return b""
        self._read(kind, event)
        if self._translator is not None:
            return self._translator.feed(event)
        if kind == "message_start" and isinstance(event.get("message"), dict):
            event["message"]["model"] = self._public_model
            return write([event])
        return frame + b"\n\n"

    def _read(self, kind: Any, event: Event) -> None:
        """Take from an event what the books need."""
        if kind == "message_start" and isinstance(event.get("message"), dict):
            self._usage = usage_from(event["message"].get("usage"))
        elif kind == "message_delta":
            self._usage = usage_from(event.get("usage"), self._usage)
            delta = event.get("delta")
            self._finished = isinstance(delta, dict) and bool(delta.get("stop_reason"))
            self._told = self._finished and self._usage is not None
        elif kind == "content_block_delta" and isinstance(event.get("delta"), dict):
            texts = (event["delta"].get(name) for name in ("text", "partial_json", "thinking"))
            said = sum(len(text.encode()) for text in texts if isinstance(text, str))
            self._output_bytes += said
            self.pieces += said > 0

    def _fail(self, what: str, *, internal: str | None = None) -> None:
        self.error = UpstreamFailed(f"The model's server {self._name!r} {what}", internal=internal)
