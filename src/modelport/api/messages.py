"""Anthropic's Messages over any chat backend, streamed or not; and how many tokens a prompt has."""

from __future__ import annotations

from collections.abc import AsyncGenerator

import msgspec

from modelport.api.bodies import decode
from modelport.api.exchange import Exchange
from modelport.api.failures import failure_event
from modelport.api.generate import Voice, cost_headers, new_call, served_headers, stream
from modelport.calls import Call, Caller, Delta, Operation, Original
from modelport.dialect.anthropic.folding import fold
from modelport.dialect.anthropic.shapes import (
    DIALECT,
    CountTokensRequest,
    MessagesRequest,
    check_version,
    read_version,
)
from modelport.dialect.anthropic.to_chat import to_chat
from modelport.dialect.anthropic.to_events import EventWriter
from modelport.dialect.anthropic.wire import MESSAGE_STOP, PING, Event, write
from modelport.errors import ModelportError
from modelport.inference.corridor import SCOPE
from modelport.inference.run import Run
from modelport.requests import ChatRequest

# Headers of the dialect that an upstream of Anthropic's own has to see.
_HEADERS = ("anthropic-version", "anthropic-beta")
# A translated body nests deeper: an image is a part of a message, a schema a part of a tool's function.
_DEEPER = 8
_encode = msgspec.json.Encoder().encode


async def messages(exchange: Exchange) -> None:
    """Authenticate, parse, translate, run, answer. The key is checked before the body is read."""
    exchange.speak_anthropic()
    platform = exchange.platform
    secret = exchange.secret()
    caller = await platform.admission.authenticate(secret, address=exchange.address, scope=SCOPE)
    call = await _read_call(exchange, caller, MessagesRequest)
    run = await platform.corridor.admit(call, secret)
    exchange.levels = run.reservation.levels
    exchange.guard(run.interrupt)
    writer = EventWriter(call)
    await (_stream(exchange, run, writer) if call.stream else _answer(exchange, run, writer))


async def count_tokens(exchange: Exchange) -> None:
    """What a prompt would be charged for as input. Free, and limited like the management API."""
    exchange.speak_anthropic()
    platform = exchange.platform
    secret = exchange.secret()
    caller, reservation = await platform.admission.manage(
        exchange.request_id, secret, address=exchange.address, scope=SCOPE
    )
    exchange.levels = reservation.levels
    call = await _read_call(exchange, caller, CountTokensRequest)
    tokens = await platform.corridor.count_input(call)
    await exchange.respond(200, _encode({"input_tokens": tokens}))


async def _read_call(exchange: Exchange, caller: Caller, type_: type[CountTokensRequest]) -> Call:
    """The call of a request, in OpenAI's dialect and in its own. Raises: BadRequest."""
    exchange.require_json()
    version = read_version(exchange.header(b"anthropic-version"))
    max_depth = exchange.platform.settings.server.max_json_depth
    request, fields = decode(await exchange.body(), type_, max_depth=max_depth)
    check_version(request, version)
    chat, chat_fields = decode(_encode(to_chat(request, fields)), ChatRequest, max_depth=max_depth + _DEEPER)
    if isinstance(request, MessagesRequest) and request.metadata:
        chat.metadata = {name: value for name, value in request.metadata.items() if value is not None}
    call = new_call(exchange, caller, operation=Operation.CHAT, request=chat, fields=chat_fields)
    headers = {name: value for name in _HEADERS if (value := exchange.header(name.encode())) is not None}
    call.original = Original(DIALECT, fields, headers)
    return call


async def _answer(exchange: Exchange, run: Run, writer: EventWriter) -> None:
    """Collect the stream into one message."""
    body = b""
    events: list[Event] = []
    async for delta in run.deltas():
        if delta.original:
            body = delta.raw
        elif delta.whole:
            events += writer.feed_whole(delta.raw, delta.usage)
        else:
            events += writer.feed(delta.raw, delta.usage)
    if not body:
        body = fold([*events, *writer.end(run.usage)])
    await exchange.respond(200, body, headers=[*served_headers(exchange, run), *cost_headers(exchange, run)])


async def _stream(exchange: Exchange, run: Run, writer: EventWriter) -> None:
    """Pass the answer on as it comes, translated where it is not Anthropic's own already."""

    def ending() -> bytes:
        return (write(writer.end(run.usage)) if writer.started else b"") + MESSAGE_STOP

    def broken(error: ModelportError) -> bytes:
        return failure_event(error, request_id=exchange.request_id, path=exchange.path)

    await stream(exchange, run, deltas=_translated(run, writer), voice=Voice(PING, ending, broken))


async def _translated(run: Run, writer: EventWriter) -> AsyncGenerator[Delta]:
    deltas = run.deltas()
    try:
        async for delta in deltas:
            yield delta if delta.original else Delta(write(writer.feed(delta.raw, delta.usage)))
    finally:
        await deltas.aclose()
