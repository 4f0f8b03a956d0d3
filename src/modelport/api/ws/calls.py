"""One call on a WebSocket: through the corridor in a task of its own, its answer as messages."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from typing import Any

import msgspec
import structlog

from modelport.api.bodies import decode, metadata_tags
from modelport.api.exchange import Exchange
from modelport.api.predict import default_model
from modelport.api.ws.frames import Head, delta_frames, done_frame, error_frame, result_frame
from modelport.api.ws.socket import WebSocket
from modelport.calls import Call, Caller, Operation
from modelport.dialect.openai import fold
from modelport.errors import CallCancelled, Internal, ModelportError
from modelport.inference.corridor import SCOPE
from modelport.inference.run import Run
from modelport.requests import ChatRequest, PredictRequest
from modelport.routing.override import METADATA

# What usage and metrics call all of them.
ENDPOINT = "/v1/ws"
_OPERATIONS: dict[str, tuple[Operation, type[Any]]] = {
    "chat.create": (Operation.CHAT, ChatRequest),
    "predict.create": (Operation.PREDICT, PredictRequest),
}
log = structlog.get_logger("modelport.api")


class SocketCall:
    """Concurrency: `stop`, `cancel` and `hang_up` are called from the event loop."""

    def __init__(self, exchange: Exchange, socket: WebSocket, secret: str, head: Head) -> None:
        self._exchange = exchange
        self._platform = exchange.platform
        self._socket = socket
        self._secret = secret
        self._head = head
        self._request_id = self._platform.ids.new("req_")
        self._started_s = self._platform.clock.monotonic_s()
        self._run: Run | None = None
        self._error: ModelportError | None = None
        self.task: asyncio.Task[None] | None = None

    def start(self, message: bytes) -> asyncio.Task[None]:
        """The task that runs it."""
        self.task = asyncio.create_task(self._answer(message))
        return self.task

    def cancel(self) -> None:
        """The client wants no more of it: it stops, whatever its route says of clients that are gone."""
        self.stop(CallCancelled())

    def stop(self, error: ModelportError) -> None:
        """Stop it with `error`."""
        if self._run is not None:
            self._run.interrupt.fire(error)
        elif self._error is None and self.task is not None:
            self._error = error
            self.task.cancel()

    def hang_up(self) -> None:
        """The client is gone."""
        if self._run is not None:
            self._run.interrupt.hang_up()
        else:
            self.stop(CallCancelled())

    async def _answer(self, message: bytes) -> None:
        """Whatever becomes of the call, the client is told."""
        try:
            await self._serve(message)
        except ModelportError as error:
            await self._fail(error)
        except asyncio.CancelledError:
            error_ = self._error or (self._run.interrupt.claim() if self._run is not None else None)
            if error_ is None:
                raise
            await self._fail(error_)
        except Exception:
            # The last handler of this door: a call that breaks must not take the others with it.
            log.exception("call_failed", request_id=self._request_id, path=ENDPOINT)
            await self._fail(Internal())
        finally:
            if self._run is not None:
                self._run.interrupt.disarm()

    async def _serve(self, message: bytes) -> None:
        caller = await self._platform.admission.authenticate(self._secret, address=self._exchange.address, scope=SCOPE)
        call = self._call(caller, message)
        run = await self._platform.corridor.admit(call, self._secret)
        # Nothing is awaited between admission and the deltas, which settle the call.
        self._run = run
        run.interrupt.arm()
        await (self._predict(run) if call.operation is Operation.PREDICT else self._chat(run))
        await self._socket.send(done_frame(self._head.id, run, latency_ms=self._elapsed_ms()))

    async def _chat(self, run: Run) -> None:
        pieces: list[bytes] = []
        whole = b""
        async with aclosing(run.deltas()) as deltas:
            async for delta in deltas:
                if delta.whole:
                    whole = delta.raw
                elif run.call.stream:
                    for frame in delta_frames(self._head.id, delta.raw):
                        await self._socket.send(frame)
                else:
                    pieces.append(delta.raw)
        if whole or not run.call.stream:
            await self._socket.send(result_frame(self._head.id, whole or fold(pieces, run.usage)))

    async def _predict(self, run: Run) -> None:
        value: list[Any] = []
        async with aclosing(run.deltas()) as deltas:
            async for delta in deltas:
                value = delta.value
        body = {"predictions": value, "prediction_id": f"pred_{self._request_id[4:]}"}
        await self._socket.send(result_frame(self._head.id, body))

    def _call(self, caller: Caller, message: bytes) -> Call:
        """Raises: BadRequest, ModelNotFound."""
        server = self._platform.settings.server
        operation, type_ = _OPERATIONS[self._head.type]
        request, fields = decode(message, type_, max_depth=server.max_json_depth)
        for own in ("type", "id"):
            fields.pop(own, None)
        if operation is Operation.CHAT and request.stream is None:
            request.stream, fields["stream"] = True, msgspec.Raw(b"true")
        if request.model is msgspec.UNSET:
            request.model = default_model(self._platform, None)
        metadata = metadata_tags(request.metadata)
        return Call(
            id=self._request_id,
            caller=caller,
            endpoint=ENDPOINT,
            operation=operation,
            model=request.model,
            request=request,
            fields=fields,
            started_us=self._platform.clock.now_us(),
            started_s=self._started_s,
            deadline_s=self._started_s + server.call_timeout_s,
            stream=bool(getattr(request, "stream", False)),
            version=getattr(request, "model_version", None),
            metadata=metadata,
            traceparent=self._exchange.traceparent.decode(),
            route=metadata.get(METADATA, ""),
        )

    async def _fail(self, error: ModelportError) -> None:
        if error.internal is not None or error.status >= 500:
            log.warning("call_error", request_id=self._request_id, code=error.code, internal=error.internal)
        self._platform.metrics.refused(type(error).code)
        frame = error_frame(self._head.id, error, request_id=self._request_id, run=self._run)
        await self._socket.send(frame)

    def _elapsed_ms(self) -> float:
        return round((self._platform.clock.monotonic_s() - self._started_s) * 1000, 3)
