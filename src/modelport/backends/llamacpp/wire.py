"""What the gateway workers and an engine's process say to each other on its UNIX socket.

A frame is four bytes of length (big-endian) and a msgpack array whose first item names its type. A connection
carries one request at a time; closing it cancels whatever runs on it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec

# A prompt of the largest body (20 MB by default) fits; nothing that isn't ours is larger.
MAX_FRAME_BYTES = 128_000_000
_HEAD_BYTES = 4


class _Frame(msgspec.Struct, array_like=True, tag=True):
    pass


class Watch(_Frame):
    """Asks for a `State` now and at each change."""


class State(_Frame):
    """`status` is a word of `backends.protocol.Status`; the numbers are 0 until the engine is ready."""

    status: str
    detail: str = ""
    context_tokens: int = 0
    vocabulary: int = 0
    slots: int = 0


class Prepare(_Frame):
    """Asks for the tokens of a chat (by the model's own template) or of prompts (text, or tokens to be checked).

    `texts`: also send each prompt as text, for `echo`.
    """

    messages: list[dict[str, str]] | None = None
    prompts: list[str | list[int]] | None = None
    texts: bool = False


class Prepared(_Frame):
    prompts: list[list[int]]
    texts: list[str] = []


class Run(msgspec.Struct, array_like=True):
    """One choice: its index in the answer, its prompt's tokens and its seed (None: a random one)."""

    index: int
    tokens: list[int]
    seed: int | None


class Generate(_Frame):
    """Asks for `runs` (one choice each), sampled by `sampling` (llama.cpp's names), until `timeout_s` is over.

    `tenant` keeps one organization's cached prompts out of another's reach.
    """

    runs: list[Run]
    max_tokens: int
    sampling: dict[str, Any]
    timeout_s: float
    tenant: str
    grammar: str = ""


class Piece(_Frame):
    """What choice `index` got since its last piece. `output_tokens` are all that it has produced so far.

    `finish` is empty until the choice's last piece, then `stop` or `length`. `logprobs` are the engine's own, as JSON.
    `stop` is the stop sequence that ended the choice, where one did.
    """

    index: int
    text: str
    output_tokens: int
    cached_tokens: int
    finish: str = ""
    logprobs: bytes = b""
    stop: str = ""


class Failure(_Frame):
    """The request failed. `code` is a class name of `errors.py` that `backend.py` raises."""

    code: str
    message: str
    retry_after_s: float = 1.0


class AskStats(_Frame):
    pass


class Stats(_Frame):
    """`engine_busy` counts slots as llama.cpp sees them, `busy` and `queued` as the queue does.

    `produced_tokens` are all output tokens of the runs that have ended since the engine started.
    """

    busy: int
    queued: int
    engine_busy: int
    seconds_per_run: float
    produced_tokens: int = 0


Message = Watch | State | Prepare | Prepared | Generate | Piece | Failure | AskStats | Stats
_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(Message)


def encode(message: Message) -> bytes:
    body = _encoder.encode(message)
    return len(body).to_bytes(_HEAD_BYTES, "big") + body


class FrameError(Exception):
    """The other side doesn't speak this protocol."""


class Frames:
    """Cuts a byte stream into messages."""

    __slots__ = ("_buffer",)

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> Iterator[Message]:
        """The messages that `data` completes. Raises: FrameError."""
        buffer = self._buffer
        buffer += data
        start = 0
        try:
            while len(buffer) - start >= _HEAD_BYTES:
                size = int.from_bytes(buffer[start : start + _HEAD_BYTES], "big")
                if size > MAX_FRAME_BYTES:
                    raise FrameError(f"a frame of {size} bytes")
                end = start + _HEAD_BYTES + size
                if len(buffer) < end:
                    break
                body = bytes(buffer[start + _HEAD_BYTES : end])
                start = end
                try:
                    yield _decoder.decode(body)
                except msgspec.DecodeError as error:
                    raise FrameError(str(error)) from error
        finally:
            del buffer[:start]
