"""Server-sent events out of network reads. Pure, and independent of what the events say.

Source: WHATWG HTML section 9.2 (server-sent events).
"""

from __future__ import annotations

from typing import NamedTuple

# One event; a piece of a picture or of sound fits.
MAX_EVENT_BYTES = 4_000_000


class Frames:
    """Cuts reads where events end. `tail` is the event that has begun and not ended."""

    __slots__ = ("tail",)

    def __init__(self) -> None:
        self.tail = b""

    def complete(self, data: bytes) -> bytes:
        """The events that `data` completes, with line feeds as line ends; an incomplete one waits for its rest."""
        if self.tail:
            data = self.tail + data
        if b"\r" in data:
            data = _normalised(data)
        if data.endswith(b"\n\n"):
            self.tail = b""
            return data
        cut = data.rfind(b"\n\n") + 2
        if cut == 1:
            self.tail = data
            return b""
        self.tail = data[cut:]
        return data[:cut]

    @property
    def overflow(self) -> bool:
        """Whether what waits has grown beyond what an event may be."""
        return len(self.tail) > MAX_EVENT_BYTES

    def rest(self) -> bytes:
        """A last event without its blank line, given one: some servers just stop there. Nothing where there is none."""
        tail, self.tail = self.tail, b""
        return tail.replace(b"\r", b"\n") + b"\n\n" if tail.strip() else b""


class Frame(NamedTuple):
    """One event: what it calls itself, and its data. Comments and other fields are left out."""

    name: bytes
    data: bytes


def frame_of(event: bytes) -> Frame:
    """The parts of one complete event."""
    lines, name = [], b""
    for line in event.split(b"\n"):
        if line.startswith(b"data:"):
            lines.append(line[5:].removeprefix(b" "))
        elif line.startswith(b"event:"):
            name = line[6:].strip()
    return Frame(name, b"\n".join(lines).strip())


def _normalised(data: bytes) -> bytes:
    """Line ends as line feeds; a carriage return at the very end may be half of one, and waits."""
    last = data.endswith(b"\r")
    body = data[:-1] if last else data
    return body.replace(b"\r\n", b"\n").replace(b"\r", b"\n") + (b"\r" if last else b"")
