"""One client's WebSocket: who it is, its calls, and how they end with it."""

from __future__ import annotations

import asyncio

from websockets.frames import CloseCode

from modelport.api.bodies import decode
from modelport.api.exchange import Exchange
from modelport.api.ws.calls import SocketCall
from modelport.api.ws.frames import READY, Head, error_frame
from modelport.api.ws.socket import WebSocket, handshake
from modelport.errors import BadRequest, ModelportError, Overloaded, Unauthenticated, Unavailable
from modelport.inference.corridor import SCOPE


async def converse(exchange: Exchange) -> None:
    """`GET /v1/ws` with an upgrade. A key in the headers is checked before the protocol is switched."""
    answer = handshake(exchange)
    secret = ""
    if exchange.header(b"authorization") is not None or exchange.header(b"x-api-key") is not None:
        secret = exchange.secret()
        await exchange.platform.admission.authenticate(secret, address=exchange.address, scope=SCOPE)
    bounds = exchange.platform.settings.server
    socket = WebSocket(exchange, most_bytes=bounds.max_socket_message_bytes, ping_s=bounds.socket_ping_s)
    await socket.accept(answer)
    session = Session(exchange, socket, secret)
    exchange.wire.on_stop = session.stop
    exchange.wire.watch(session.hang_up)
    try:
        await session.talk()
    finally:
        exchange.wire.on_gone = None
        await session.close()
    await socket.end()


class Session:
    """Concurrency: one task reads; each call has a task of its own."""

    def __init__(self, exchange: Exchange, socket: WebSocket, secret: str) -> None:
        self._exchange = exchange
        self._socket = socket
        self._secret = secret
        self._calls: dict[str, SocketCall] = {}
        self._most_calls = exchange.platform.settings.server.max_socket_calls
        self._stopping = False
        self._late = False

    async def talk(self) -> None:
        """Read until the client or the server is done. Without a key in the headers, the first message brings it."""
        loop = asyncio.get_running_loop()
        patience_s = self._exchange.platform.settings.server.header_timeout_s
        timer = None if self._secret else loop.call_later(patience_s, self._be_late)
        try:
            while (messages := await self._socket.receive()) is not None:
                for message in messages:
                    await self._take(message)
                if self._late and not self._secret:
                    await self._refuse(Unauthenticated(f"No key arrived within {patience_s:g} s."))
                elif self._stopping and not self._calls:
                    await self._socket.close(CloseCode.GOING_AWAY, "The server stops.")
                if not self._socket.open:
                    return
        finally:
            if timer is not None:
                timer.cancel()

    def stop(self) -> None:
        """The server stops: calls end, and no new ones begin."""
        self._stopping = True
        self._socket.nudge()

    def hang_up(self) -> None:
        """The client is gone: its calls end as their routes say."""
        for call in self._calls.values():
            call.hang_up()

    async def close(self) -> None:
        """Return when every call is settled. Those that still run are stopped."""
        alone = not self._socket.open
        for call in list(self._calls.values()):
            if alone:
                call.hang_up()
            else:
                call.stop(Unavailable("The server stops; the rest is lost. Call again."))
        tasks = [call.task for call in self._calls.values() if call.task is not None]
        if tasks:
            await asyncio.shield(asyncio.wait(tasks))

    async def _take(self, message: bytes) -> None:
        """Do what one message says; what is wrong with it is told, and is no reason to close."""
        head = Head("cancel")
        try:
            head, _ = decode(message, Head, max_depth=self._exchange.platform.settings.server.max_json_depth)
            if not self._secret:
                await self._authenticate(head)
            elif head.type == "auth":
                raise BadRequest("This connection has a key already; open another one for another key.")
            elif head.type == "cancel":
                # What has ended meanwhile can't be cancelled any more, which is nobody's mistake.
                if (call := self._calls.get(head.id)) is not None:
                    call.cancel()
            else:
                self._begin(head, message)
        except ModelportError as error:
            await self._socket.send(error_frame(head.id, error))

    async def _authenticate(self, head: Head) -> None:
        try:
            if head.type != "auth":
                raise Unauthenticated('Send {"type": "auth", "key": "mp_…"} first, or the key in a header.')
            await self._exchange.platform.admission.authenticate(head.key, address=self._exchange.address, scope=SCOPE)
        except ModelportError as error:
            await self._refuse(error, head.id)
            return
        self._secret = head.key
        await self._socket.send(READY)

    async def _refuse(self, error: ModelportError, id_: str = "") -> None:
        await self._socket.send(error_frame(id_, error))
        await self._socket.close(CloseCode.POLICY_VIOLATION, error.code)

    def _begin(self, head: Head, message: bytes) -> None:
        """Raises: BadRequest, Overloaded, Unavailable."""
        if not head.id:
            raise BadRequest("A call needs an id of your own, which its answers repeat.", param="id")
        if head.id in self._calls:
            raise BadRequest(f"A call with the id {head.id!r} is running.", param="id")
        if self._stopping:
            raise Unavailable("The server stops; open another connection.")
        if len(self._calls) >= self._most_calls:
            raise Overloaded(f"{self._most_calls} calls run on this connection; wait for one of them.")
        call = SocketCall(self._exchange, self._socket, self._secret, head)
        self._calls[head.id] = call
        call.start(message).add_done_callback(lambda _: self._ended(head.id))

    def _ended(self, id_: str) -> None:
        del self._calls[id_]
        if self._stopping:
            self._socket.nudge()

    def _be_late(self) -> None:
        self._late = True
        self._socket.nudge()
