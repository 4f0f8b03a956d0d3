"""A WebSocket on a connection of ours: messages in, messages out, pings, and a proper end.

The framing is `websockets`' own, which has no I/O in it; reading, writing and back-pressure are the connection's.
Source: RFC 6455 sections 4.2, 5.4, 5.5 and 7.
"""

from __future__ import annotations

import asyncio
import base64
import binascii

from websockets.frames import CloseCode, Frame, Opcode
from websockets.protocol import SERVER, Protocol, State
from websockets.utils import accept_key

from modelport.api.exchange import Exchange
from modelport.errors import BadRequest, UpgradeRequired

_KEY_BYTES = 16


def handshake(exchange: Exchange) -> str:
    """The value of `Sec-WebSocket-Accept`. Raises: UpgradeRequired for another version, BadRequest without a key."""
    if exchange.header(b"sec-websocket-version") != "13":
        raise UpgradeRequired("Only version 13 of the WebSocket protocol is spoken here.")
    key = exchange.header(b"sec-websocket-key") or ""
    try:
        fits = len(base64.b64decode(key, validate=True)) == _KEY_BYTES
    except (binascii.Error, ValueError):
        fits = False
    if not fits:
        raise BadRequest("Sec-WebSocket-Key is not 16 bytes in base64.")
    return accept_key(key)


class WebSocket:
    """Concurrency: one task receives; any may send, and waits while the client reads slower than it is written to."""

    def __init__(self, exchange: Exchange, *, most_bytes: int, ping_s: float) -> None:
        """`most_bytes` is what a message may have, all its fragments together."""
        self._wire = exchange.wire
        self._exchange = exchange
        self._protocol = Protocol(SERVER, max_size=most_bytes)
        self._ping_s = ping_s
        self._pinged = False
        self._fragments: list[bytes] = []

    @property
    def open(self) -> bool:
        return self._protocol.state is State.OPEN and not self._wire.gone

    async def accept(self, answer: str) -> None:
        """Switch protocols, with what `handshake` returned."""
        exchange = self._exchange
        exchange.started, exchange.status = True, 101
        await self._wire.switch(
            [
                (b"upgrade", b"websocket"),
                (b"connection", b"Upgrade"),
                (b"sec-websocket-accept", answer.encode()),
                (b"x-request-id", exchange.request_id.encode()),
                *exchange.extra,
            ]
        )

    async def receive(self) -> list[bytes] | None:
        """The messages that have arrived, perhaps none (somebody called `nudge`); None when the socket is over.

        A client that is silent is pinged, and cut off when it leaves a ping unanswered.
        """
        try:
            async with asyncio.timeout(self._ping_s):
                message = await self._wire.receive()
        except TimeoutError:
            return await self._ping()
        if message["type"] != "http.request":
            return None
        if message["body"]:
            self._pinged = False
            self._protocol.receive_data(message["body"])
        messages = [whole for frame in self._protocol.events_received() if (whole := self._joined(frame)) is not None]
        await self._write_replies()
        return messages if self.open or messages else None

    def nudge(self) -> None:
        """Have `receive` return."""
        self._wire.nudge()

    async def send(self, text: bytes) -> None:
        """One text message; dropped when the socket is over."""
        if self.open:
            await self._wire.piece(Frame(Opcode.TEXT, text).serialize(mask=False))

    async def close(self, code: CloseCode, reason: str) -> None:
        """Say that it is over, and why."""
        if self.open:
            self._protocol.send_close(code, reason)
            await self._write_replies()

    async def end(self) -> None:
        """Close the connection behind what was written."""
        if not self._wire.complete:
            await self._wire.end(b"")

    async def _ping(self) -> list[bytes] | None:
        if self._pinged:
            self._wire.break_off()
            return None
        self._pinged = True
        self._protocol.send_ping(b"")
        await self._write_replies()
        return []

    async def _write_replies(self) -> None:
        """Pongs and close frames, which the protocol writes by itself. Its word for the end is an empty piece."""
        data = b"".join(self._protocol.data_to_send())
        if data:
            await self._wire.piece(data)

    def _joined(self, frame: object) -> bytes | None:
        """The message that `frame` completes. Binary ones are taken as text too: some clients send JSON so."""
        assert isinstance(frame, Frame)
        if frame.opcode not in (Opcode.TEXT, Opcode.BINARY, Opcode.CONT):
            return None
        if frame.data:
            # Empty ones count nothing against the message's bound, and would be gathered without end.
            self._fragments.append(bytes(frame.data))
        if not frame.fin:
            return None
        whole, self._fragments = b"".join(self._fragments), []
        return whole
