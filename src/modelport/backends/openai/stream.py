"""An upstream's event stream, made into the one our caller asked for. Pure: bytes in, bytes out.

Works on a network read, not on an event. Most reads hold complete plain events in which at most the model's name
and an empty `usage` have to be changed, and JSON strings escape their quotes, so that `"model":"…"` with bare quotes
can only be a member and never something a model said: such a read is changed by byte replacement. The exact forms
(spaces, escapes) are learnt from the first event. Cheapest of all is one event that differs from an earlier one in
nothing but its text. Whatever is not plain is taken apart and decoded.

Source: OpenAI chat completion chunk object.
"""

from __future__ import annotations

import re
from typing import Any

import msgspec

from modelport.backends.upstream.frames import MAX_EVENT_BYTES, Frames, frame_of
from modelport.backends.upstream.refusals import stream_error
from modelport.calls import Usage
from modelport.dialect.openai import usage_body, usage_from
from modelport.errors import ModelportError, UpstreamFailed

_MODEL = re.compile(rb'("model"\s*:\s*)("(?:[^"\\]|\\.)*")')
_NULL_USAGE = re.compile(rb',\s*"usage"\s*:\s*null')
_NULL_FINISH = re.compile(rb'"finish_reason"\s*:\s*null')
# The text of an event with one piece of it: what may differ between two events that are otherwise the same.
_TEXT = re.compile(rb'"(?:content|text)"\s*:\s*"([^"\\]+)"')
# Some upstreams put something different into every event; they are not asked more often than this for a mould.
_MOULD_TRIES = 3
_BOM = b"\xef\xbb\xbf"
_decode = msgspec.json.Decoder().decode
_encode = msgspec.json.Encoder().encode


class EventStream:
    """One upstream stream on its way to one caller.

    `feed` returns what to pass on. `done` is set by `[DONE]`, `error` by whatever ends the stream before it; what
    `feed` returned before still counts. `usage` is what the upstream reported, None until it did; `pieces` counts the
    deltas with model output meanwhile, which is close to the number of tokens.
    """

    original = False

    __slots__ = (
        "_counted",
        "_finish_null",
        "_finished",
        "_frames",
        "_head",
        "_keep_usage",
        "_learnt",
        "_model_json",
        "_model_new",
        "_mould",
        "_name",
        "_old_model",
        "_public_model",
        "_started",
        "_tries",
        "_usage_null",
        "done",
        "error",
        "pieces",
        "usage",
    )

    def __init__(self, name: str, *, public_model: str, keep_usage: bool) -> None:
        self._name = name
        self._public_model = public_model
        self._model_json = _encode(public_model)
        self._keep_usage = keep_usage
        self._frames = Frames()
        self._started = False
        self._learnt = False
        self._finished = False
        self._head: dict[str, Any] = {}
        self._old_model = self._model_new = b""
        self._usage_null = self._finish_null = b""
        # Before and after the text of an event as it comes in, and as it goes out.
        self._mould: tuple[bytes, bytes, bytes, bytes] | None = None
        self._tries = 0
        self._counted = Usage(exact=False)
        self.done = False
        self.error: ModelportError | None = None
        self.usage: Usage | None = None
        self.pieces = 0

    def feed(self, data: bytes) -> bytes:
        """The complete events that `data` completes, ready to be passed on; an incomplete one waits for its rest."""
        if self._mould is not None and not self._frames.tail:
            before, after, new_before, new_after = self._mould
            if data.startswith(before) and data.endswith(after):
                text = data[len(before) : -len(after)]
                # A bare quote would end the text: then this is more than one event, or another one.
                if text and b'"' not in text:
                    self.pieces += 1
                    return new_before + text + new_after
        data = self._frames.complete(data)
        if self._frames.overflow:
            self._fail(f"sent an event larger than {MAX_EVENT_BYTES} bytes")
        return data and self._passed(data)

    def end(self, *, input_tokens: int) -> bytes:
        """What is still to be passed on when the upstream has ended; sets `error` where it ended too early.

        Where the caller asked for usage and the upstream reported none, that is the count made here.
        """
        tail = self._frames.rest()
        last = self._parsed(tail) if tail and not self.done and self.error is None else b""
        if self.error is None and not (self.done or self._finished):
            # Where it did not stream at all, what it sent instead is in the tail.
            self._fail("ended its answer too early", internal=f"its last bytes: {tail[:200]!r}")
        if self._keep_usage and self.usage is None and self.error is None:
            usage = self.count(input_tokens)
            last += b"data: " + _encode({**self._head, "choices": [], "usage": usage_body(usage)}) + b"\n\n"
        return last

    def count(self, input_tokens: int) -> Usage:
        """The usage so far: reported, or counted from the stream."""
        if self.usage is not None:
            return self.usage
        # One object for the whole stream: whoever holds it sees the count of now.
        counted = self._counted
        counted.input_tokens, counted.output_tokens = input_tokens, self.pieces
        return counted

    def _passed(self, data: bytes) -> bytes:
        """Complete events as our caller is to see them: plain ones go on together, only the others are taken apart."""
        plain = self._plain(data)
        if plain:
            return plain
        # Nearly always the others are the first event, which tells the forms, and the last ones, behind the text.
        if not self._learnt:
            begin = data.find(b"\n\n") + 2
            if begin < len(data):
                first = self._parsed(data[:begin])
                return first + self._passed(data[begin:]) if self._learnt else first + self._parsed(data[begin:])
        elif self._finish_null:
            end = data.find(b"\n\n", data.rfind(self._finish_null)) + 2
            if end < len(data):
                plain = self._plain(data[:end])
                if plain:
                    return plain + self._parsed(data[end:])
        return self._parsed(data)

    def _plain(self, data: bytes) -> bytes:
        """The read with its names replaced, or nothing where it holds more than plain events."""
        count = data.count(b"}\n\n")
        if (
            not self._learnt
            or not data.startswith(b"data: {")
            or data.count(b"\n") != 2 * count
            or data.count(b'"choices"') != count
            or (count > 1 and data.count(b"\n\ndata: {") != count - 1)
            or b'"error"' in data
            or data.count(b'"finish_reason"') != (data.count(self._finish_null) if self._finish_null else 0)
        ):
            return b""
        original = data
        if b'"usage"' in data:
            nulls = data.count(self._usage_null) if self._usage_null else 0
            if data.count(b'"usage"') != nulls:
                return b""
            if not self._keep_usage:
                data = data.replace(self._usage_null, b"")
        if self._old_model:
            data = data.replace(self._old_model, self._model_new)
        self.pieces += count
        if count == 1 and self._tries < _MOULD_TRIES:
            self._cast(original, data)
        return data

    def _cast(self, event: bytes, new_event: bytes) -> None:
        """Keep what surrounds the text of `event`, for events that differ in nothing else."""
        self._tries += 1
        old, new = list(_TEXT.finditer(event)), list(_TEXT.finditer(new_event))
        if len(old) == len(new) == 1:
            (at,), (new_at,) = old, new
            self._mould = (
                event[: at.start(1)],
                event[at.end(1) :],
                new_event[: new_at.start(1)],
                new_event[new_at.end(1) :],
            )

    def _parsed(self, data: bytes) -> bytes:
        """The same by taking every event apart."""
        if not self._started:
            self._started = True
            data = data.removeprefix(_BOM)
        out = []
        for event in data.split(b"\n\n"):
            if self.done or self.error is not None:
                break
            name, payload = frame_of(event)
            if payload == b"[DONE]":
                self.done = True
            elif payload:
                out.append(self._event(payload, named_error=name == b"error"))
        return b"".join(out)

    def _event(self, payload: bytes, *, named_error: bool) -> bytes:
        try:
            chunk = _decode(payload)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            self._fail("sent an event that is not JSON", internal=str(error))
            return b""
        if not isinstance(chunk, dict):
            self._fail("sent an event that is no completion")
            return b""
        trouble = chunk.get("error") or (chunk if named_error or chunk.get("object") == "error" else None)
        if trouble:
            self.error = stream_error(self._name, trouble)
            return b""
        choices = chunk.get("choices")
        if not isinstance(choices, list) or not all(isinstance(choice, dict) for choice in choices):
            self._fail("sent an event that is no completion")
            return b""
        self.pieces += sum(_carries(choice) for choice in choices)
        self._finished = self._finished or any(choice.get("finish_reason") for choice in choices)
        return self._rewritten(payload, chunk)

    def _rewritten(self, payload: bytes, chunk: dict[str, Any]) -> bytes:
        """The event as our caller is to see it, or nothing where it only told the usage to nobody who asked."""
        had_usage = chunk.get("usage")
        if had_usage:
            self.usage = usage_from(had_usage) or self.usage
        if not self._keep_usage and "usage" in chunk:
            if had_usage and not chunk["choices"]:
                return b""
            payload = self._without_usage(payload, chunk)
        payload = self._renamed(payload, chunk)
        if chunk["choices"] and not self._learnt:
            self._learn(payload)
            self._head = {
                name: chunk[name] for name in ("id", "object", "created", "system_fingerprint") if name in chunk
            }
            self._head["model"] = self._public_model
        # A payload of several lines has them joined by line feeds, which JSON allows only between its tokens.
        return b"data: " + payload.replace(b"\n", b" ") + b"\n\n"

    def _without_usage(self, payload: bytes, chunk: dict[str, Any]) -> bytes:
        if chunk["usage"] is None:
            found = _NULL_USAGE.findall(payload)
            if len(found) == 1:
                self._usage_null = found[0]
                return payload.replace(found[0], b"")
        del chunk["usage"]
        return _encode(chunk)

    def _renamed(self, payload: bytes, chunk: dict[str, Any]) -> bytes:
        model = chunk.get("model")
        if not isinstance(model, str) or model == self._public_model:
            return payload
        if self._old_model and self._old_model in payload:
            return payload.replace(self._old_model, self._model_new)
        for found in _MODEL.finditer(payload):
            if _decode(found[2]) == model:
                self._old_model, self._model_new = found[0], found[1] + self._model_json
                return payload.replace(self._old_model, self._model_new)
        return payload

    def _learn(self, payload: bytes) -> None:
        """Take the forms of this upstream's members from its first event with a choice."""
        self._learnt = True
        if self._keep_usage:
            # Without its comma, since nothing is removed.
            found = _NULL_USAGE.search(payload)
            self._usage_null = found[0].lstrip(b", ") if found else b""
        found = _NULL_FINISH.search(payload)
        self._finish_null = found[0] if found else b""

    def _fail(self, what: str, *, internal: str | None = None) -> None:
        self.error = UpstreamFailed(f"The model's server {self._name!r} {what}", internal=internal)


def _carries(choice: dict[str, Any]) -> bool:
    """Whether a choice's part holds model output, and not just a role or an end."""
    delta = choice.get("delta")
    if isinstance(delta, dict):
        return any(value for name, value in delta.items() if name != "role")
    return bool(choice.get("text"))
