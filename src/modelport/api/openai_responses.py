"""`POST /v1/responses`: OpenAI's Responses over any chat model, streamed or not. See docs/guides/responses.md."""

from __future__ import annotations

from collections.abc import AsyncGenerator

from modelport.api.bodies import decode
from modelport.api.exchange import Exchange
from modelport.api.generate import OPENAI, Voice, cost_headers, new_call, served_headers, stream
from modelport.calls import Delta, Operation
from modelport.dialect.responses.answer import ResponseWriter
from modelport.dialect.responses.to_chat import chat_body, chat_param
from modelport.errors import ModelportError
from modelport.inference.corridor import SCOPE, Run
from modelport.requests import ChatRequest, ResponsesRequest

# How much deeper a chat nests the same request.
_DEEPER = 4


async def responses(exchange: Exchange) -> None:
    """Authenticate, translate, run, answer. The key is checked before the body is read."""
    exchange.style = "openai"
    platform = exchange.platform
    secret = exchange.secret()
    caller = await platform.admission.authenticate(secret, address=exchange.address, scope=SCOPE)
    exchange.require_json()
    depth = platform.settings.server.max_json_depth
    asked, sent = decode(await exchange.body(), ResponsesRequest, max_depth=depth)
    chat = chat_body(asked, sent)
    try:
        request, fields = decode(chat, ChatRequest, max_depth=depth + _DEEPER)
        call = new_call(exchange, caller, operation=Operation.CHAT, request=request, fields=fields)
        run = await platform.corridor.admit(call, secret)
        exchange.levels = run.reservation.levels
        exchange.guard(run.interrupt)
        writer = ResponseWriter(call, asked)
        await (_stream(exchange, run, writer) if call.stream else _answer(exchange, run, writer))
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
