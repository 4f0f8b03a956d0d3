"""The short way of a stream's pieces: from the upstream's connection to the client's, in the turn that they arrive."""

from __future__ import annotations

from typing import Protocol

from modelport.calls import Relay, Usage
from modelport.errors import ModelportError


class Reader(Protocol):
    """One stream on its way to one caller. `done` is set by its terminal frame, `error` by whatever ends it before;
    `pieces` counts the deltas with model output, `original` is what `Delta.original` says."""

    done: bool
    error: ModelportError | None
    pieces: int
    original: bool

    def feed(self, data: bytes) -> bytes:
        """What `data` completes, ready to be passed on."""
        ...

    def end(self, *, input_tokens: int) -> bytes:
        """What is still to be passed on when the server has ended; sets `error` where it ended too early."""
        ...

    def count(self, input_tokens: int) -> Usage:
        """The usage so far; `input_tokens` is what to say until the server has told."""
        ...


class Lane:
    """Reads what arrives with `events` and hands it to `relay`. `left` is what the relay did not take, or what came
    with the stream's end."""

    __slots__ = ("_events", "_input_tokens", "_relay", "left")

    def __init__(self, events: Reader, relay: Relay, *, input_tokens: int) -> None:
        self._events = events
        self._relay = relay
        self._input_tokens = input_tokens
        self.left = b""
        relay.count = self._count

    def take(self, data: bytes) -> bool:
        """Pass `data` on; false when the stream's own task has to see to the rest."""
        events = self._events
        raw = events.feed(data)
        if events.done or events.error is not None:
            self.left = raw
            return False
        if raw and not self._relay.put(raw):
            self.left = raw
            return False
        return True

    def _count(self) -> Usage:
        return self._events.count(self._input_tokens)
