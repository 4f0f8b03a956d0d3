"""Gemini's answers, streamed or whole, made into a chat's chunks. Pure: bytes in, bytes out."""

from __future__ import annotations

import msgspec

from modelport.backends.upstream.estimate import BYTES_PER_TOKEN, estimate_input
from modelport.backends.upstream.frames import MAX_EVENT_BYTES, Frames, frame_of
from modelport.backends.upstream.refusals import stream_error
from modelport.calls import Call, Delta, Usage
from modelport.dialect.gemini.to_chunks import ChunkTranslator
from modelport.errors import ModelportError, UpstreamFailed

_decode = msgspec.json.Decoder().decode


class ContentStream:
    """One upstream stream on its way to one caller.

    `feed` returns what to pass on. The stream ends with its body: `done` stays false. `error` is set by whatever ends
    it before its last candidate did; what `feed` returned before still counts.
    """

    __slots__ = ("_frames", "_name", "_translator", "done", "error", "original", "pieces")

    def __init__(self, name: str, call: Call) -> None:
        self._name = name
        self._translator = ChunkTranslator(call, name=name)
        self._frames = Frames()
        self.done = False
        self.error: ModelportError | None = None
        self.original = False
        self.pieces = 0

    def feed(self, data: bytes) -> bytes:
        """The chunks of the events that `data` completes."""
        data = self._frames.complete(data)
        if self._frames.overflow:
            self._fail(UpstreamFailed(f"The model's server {self._name!r} sent an event over {MAX_EVENT_BYTES} bytes"))
        return self.take([frame_of(event).data for event in data.split(b"\n\n")])

    def end(self, *, input_tokens: int) -> bytes:
        """What is still to be passed on when the upstream has ended; sets `error` where it ended too early."""
        raw = self.take([frame_of(self._frames.rest()).data])
        if self.error is None:
            try:
                raw += self._translator.end(self.count(input_tokens))
            except ModelportError as error:
                self._fail(error)
        return raw

    def count(self, input_tokens: int) -> Usage:
        """The usage so far: what Gemini reported, or an estimate."""
        output = -(-self._translator.size_bytes // BYTES_PER_TOKEN)
        return self._translator.usage or Usage(input_tokens, output, exact=False)

    def take(self, payloads: list[bytes]) -> bytes:
        """The chunks of these answers, up to the first that is an error."""
        raw, before = b"", self._translator.size_bytes
        for payload in payloads:
            if payload and self.error is None:
                try:
                    raw += self._translator.feed(_read(self._name, payload))
                except ModelportError as error:
                    self._fail(error)
        self.pieces += self._translator.size_bytes > before
        return raw

    def _fail(self, error: ModelportError) -> None:
        self.error = error


def read_content(name: str, call: Call, body: bytes) -> Delta:
    """A whole answer as chunks, which the door folds. Raises: UpstreamFailed, UpstreamRejected."""
    stream, estimate = ContentStream(name, call), estimate_input(call)
    raw = stream.take([body or b"null"])
    raw += stream.end(input_tokens=estimate)
    if stream.error is not None:
        raise stream.error
    return Delta(raw, usage=stream.count(estimate))


def _read(name: str, payload: bytes) -> object:
    try:
        event = _decode(payload)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise UpstreamFailed(
            f"The model's server {name!r} sent something that is not JSON", internal=str(error)
        ) from None
    if isinstance(event, dict) and event.get("error"):
        raise stream_error(name, event["error"])
    return event
