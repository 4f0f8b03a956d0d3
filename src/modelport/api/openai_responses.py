"""`POST /v1/responses`: OpenAI's Responses over any chat model, streamed or not. See docs/guides/responses.md."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterator
from contextlib import contextmanager

import msgspec

from modelport.api.bodies import decode
from modelport.api.exchange import Exchange
from modelport.api.generate import OPENAI, Voice, cost_headers, new_call, served_headers, stream
from modelport.calls import Call, Caller, Delta, Operation
from modelport.dialect.responses.answer import ResponseWriter
from modelport.dialect.responses.to_chat import chat_body, chat_param
from modelport.errors import ModelportError
from modelport.inference.corridor import SCOPE
from modelport.inference.run import Run
from modelport.requests import ChatRequest, ResponsesRequest

# How much deeper a chat nests the same request.
_DEEPER = 4
_encode = msgspec.json.Encoder().encode


async def responses(exchange: Exchange) -> None:
    """Authenticate, translate, run, answer. The key is checked before the body is read."""
    exchange.style = "openai"
    platform = exchange.platform
    secret = exchange.secret()
    caller = await platform.admission.authenticate(secret, address=exchange.address, scope=SCOPE)
    with _own_names():
        call, asked = await _read_call(exchange, caller)
        run = await platform.corridor.admit(call, secret)
        exchange.levels = run.reservation.levels
        exchange.guard(run.interrupt)
        writer = ResponseWriter(call, asked)
        await (_stream(exchange, run, writer) if call.stream else _answer(exchange, run, writer))


async def count_input_tokens(exchange: Exchange) -> None:
    """What a response would be charged for as input. Free, and limited like the management API."""
    exchange.style = "openai"
    platform = exchange.platform
    caller, reservation = await platform.admission.manage(
        exchange.request_id, exchange.secret(), address=exchange.address, scope=SCOPE
    )
    exchange.levels = reservation.levels
    with _own_names():
        call, _ = await _read_call(exchange, caller)
        tokens = await platform.corridor.count_input(call)
    await exchange.respond(200, _encode({"object": "response.input_tokens", "input_tokens": tokens}))


async def _read_call(exchange: Exchange, caller: Caller) -> tuple[Call, ResponsesRequest]:
    """The chat that answers the request, and the request. Raises: BadRequest."""
    exchange.require_json()
    depth = exchange.platform.settings.server.max_json_depth
    asked, sent = decode(await exchange.body(), ResponsesRequest, max_depth=depth)
    request, fields = decode(chat_body(asked, sent), ChatRequest, max_depth=depth + _DEEPER)
    return new_call(exchange, caller, operation=Operation.CHAT, request=request, fields=fields), asked


@contextmanager
def _own_names() -> Iterator[None]:
    """Errors about a member of the chat name the member of the response that it came from."""
    try:
        yield
    except ModelportError as error:
        error.param = chat_param(error.param)
        raise


async def _answer(exchange: Exchange, run: Run, writer: ResponseWriter) -> None:
    """Collect the stream into one response."""
    async for delta in run.deltas():
        if delta.whole:
            writer.take_whole(delta.raw)
        else:
            writer.take(delta.raw)
    writer.end(run.usage)
    headers = [*served_headers(exchange, run), *cost_headers(exchange, run)]
    await exchange.respond(200, writer.body(run.usage), headers=headers)


async def _stream(exchange: Exchange, run: Run, writer: ResponseWriter) -> None:
    """Pass the answer on as it comes, in the words of the dialect."""
    voice = Voice(OPENAI.silence, lambda: writer.end(run.usage), writer.fail)
    await stream(exchange, run, deltas=_translated(run, writer), voice=voice)


async def _translated(run: Run, writer: ResponseWriter) -> AsyncGenerator[Delta]:
    deltas = run.deltas()
    opening = writer.start()
    try:
        async for delta in deltas:
            yield Delta(opening + writer.take(delta.raw))
            opening = b""
    finally:
        await deltas.aclose()
