"""`POST /v1/predict/stream`: a prediction as server-sent events, for models that take a while."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec

from modelport.api.exchange import Exchange
from modelport.api.generate import served_headers
from modelport.api.predict import admit, authenticate, collect, facts, prediction_id, read_request
from modelport.api.problems import error_member
from modelport.errors import ModelportError
from modelport.kit.money import format_usd

# Often enough for a progress bar, and for proxies to keep the connection open.
_PROGRESS_S = 1.0
_encode = msgspec.json.Encoder().encode


async def predict_stream(exchange: Exchange) -> None:
    """`queued`, then `progress` every second, then `result` or `error`. A failure before the first event is an
    ordinary error answer."""
    secret, caller = await authenticate(exchange)
    request, fields = await read_request(exchange)
    run = await admit(exchange, caller, secret, request=request, fields=fields)
    exchange.last_words = _broken
    progress = _Progress(exchange)
    try:
        value = await collect(run)
    finally:
        await progress.close()
    if not exchange.started:
        await exchange.start_stream(served_headers(exchange, run))
        await exchange.send(_queued(exchange))
    body = {"predictions": value, "prediction_id": prediction_id(exchange), **facts(exchange, run)}
    await exchange.finish(_event("result", body | {"cost_usd": format_usd(run.cost_nanos)}))


class _Progress:
    """Begins the stream as soon as the call waits for its model, and tells how long it has taken until now."""

    def __init__(self, exchange: Exchange) -> None:
        self._exchange = exchange
        self._begun = asyncio.Event()
        self._task = asyncio.create_task(self._tell())

    async def close(self) -> None:
        """Tell nothing more. A head that is being written is written to its end."""
        if self._exchange.started:
            await self._begun.wait()
        self._task.cancel()
        await asyncio.wait([self._task])

    async def _tell(self) -> None:
        exchange = self._exchange
        try:
            await exchange.start_stream([])
        finally:
            self._begun.set()
        await exchange.send(_queued(exchange))
        while True:
            await asyncio.sleep(_PROGRESS_S)
            await exchange.send(_event("progress", {"elapsed_ms": round(exchange.elapsed_s() * 1000)}))


def _queued(exchange: Exchange) -> bytes:
    return _event("queued", {"prediction_id": prediction_id(exchange), "request_id": exchange.request_id})


def _broken(error: ModelportError) -> bytes:
    return _event("error", {"error": error_member(error)})


def _event(name: str, body: dict[str, Any]) -> bytes:
    return b"event: %b\ndata: %b\n\n" % (name.encode(), _encode(body))
