"""What gateway and model's process say to each other: msgpack in frames, never pickle.

Inputs and results are encoded one by one, so that what can't be written fails its own input alone.

A frame is its length in four bytes, little-endian, and so many bytes. Arrays of numpy travel as what they are: dtype,
shape and bytes; sets, dates and other things that JSON does not have as msgspec writes them.
"""

from __future__ import annotations

import socket
import struct
from typing import Any

import msgspec

MAX_FRAME_BYTES = 1 << 30
# Of one input or result: so many of them as a batch has go into a frame.
MAX_VALUE_BYTES = 1 << 26
_LENGTH = struct.Struct("<I")


class Load(msgspec.Struct, tag=True):
    """The first frame: what to load."""

    path: str
    class_name: str
    arguments: dict[str, Any]
    memory_bytes: int | None


class Loaded(msgspec.Struct, tag=True):
    """The answer: what the model tells of itself."""

    info: dict[str, Any]


class Failed(msgspec.Struct, tag=True):
    """The answer of a model that can't be loaded, in words for its operator."""

    reason: str


class Batch(msgspec.Struct, tag=True):
    """Inputs to be computed together, each as msgpack of its own."""

    inputs: list[bytes]


class Outcome(msgspec.Struct):
    """What became of one input: `value`, as msgpack of its own; or `refused`, which is the caller's to mend; or
    `broken`, the operator's."""

    value: bytes = b""
    refused: str | None = None
    broken: str | None = None


class Outcomes(msgspec.Struct, tag=True):
    """One for each input."""

    each: list[Outcome]


class Closed(Exception):
    """The other side is gone."""


Message = Load | Loaded | Failed | Batch | Outcomes
_encoder = msgspec.msgpack.Encoder()
_decode = msgspec.msgpack.Decoder(Message).decode


def pack(value: Any) -> bytes:
    """One input or result. Raises: ValueError that says what can't be written."""
    try:
        packed = _encoder.encode(value)
    except (TypeError, OverflowError, RecursionError) as error:
        raise ValueError(str(error)) from None
    if len(packed) > MAX_VALUE_BYTES:
        raise ValueError(f"it has {len(packed):,} bytes, {MAX_VALUE_BYTES:,} are the most")
    return packed


def unpack(packed: bytes) -> Any:
    return msgspec.msgpack.decode(packed)


def send(line: socket.socket, message: Message, *, encoder: msgspec.msgpack.Encoder = _encoder) -> None:
    """Raises: Closed, TimeoutError; TypeError and ValueError for what can't be written, with nothing sent."""
    body = encoder.encode(message)
    if len(body) > MAX_FRAME_BYTES:
        raise ValueError(f"{len(body)} bytes are too many for one message")
    try:
        line.sendall(_LENGTH.pack(len(body)) + body)
    except TimeoutError:
        raise
    except OSError as error:
        raise Closed(str(error)) from error


def receive(line: socket.socket) -> Message:
    """The next message. Raises: Closed, TimeoutError."""
    (length,) = _LENGTH.unpack(_exactly(line, _LENGTH.size))
    try:
        message: Message = _decode(_exactly(line, length))
    except msgspec.MsgspecError as error:
        raise Closed(f"what came is no message: {error}") from error
    return message


def _exactly(line: socket.socket, size: int) -> bytearray:
    if size > MAX_FRAME_BYTES:
        raise Closed(f"a message of {size} bytes")
    body = bytearray(size)
    view, filled = memoryview(body), 0
    try:
        while filled < size:
            count = line.recv_into(view[filled:])
            if not count:
                raise Closed("the connection ended")
            filled += count
    except TimeoutError:
        raise
    except OSError as error:
        raise Closed(str(error)) from error
    return body
