"""Chat completions, completions and embeddings: OpenAI's format over any backend, streamed or not."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from functools import lru_cache
from typing import Any, NamedTuple

from modelport.api.bodies import decode, metadata_tags
from modelport.api.exchange import Exchange
from modelport.api.problems import stream_event
from modelport.api.wire import Headers
from modelport.calls import Call, Caller, Delta, Operation, Relay
from modelport.dialect.openai import DONE, fold
from modelport.errors import ModelportError, UpstreamFailed
from modelport.inference.corridor import SCOPE
from modelport.inference.run import Run
from modelport.kit.money import format_usd
from modelport.replay.cache.ticket import Ticket
from modelport.requests import ChatRequest, CompletionRequest, EmbeddingRequest
from modelport.routing.override import HEADER, METADATA

_ROUTE = HEADER.encode()


class Voice(NamedTuple):
    """What a door says in a stream beside the deltas: in silence, at its end (never nothing), and where it breaks."""

    silence: bytes
    ending: Callable[[], bytes]
    broken: Callable[[ModelportError], bytes]


OPENAI = Voice(b": keep-alive\n\n", lambda: DONE, stream_event)


def chat_completions(exchange: Exchange) -> Awaitable[None]:
    return _generate(exchange, Operation.CHAT, ChatRequest)


def completions(exchange: Exchange) -> Awaitable[None]:
    return _generate(exchange, Operation.COMPLETION, CompletionRequest)


def embeddings(exchange: Exchange) -> Awaitable[None]:
    return _generate(exchange, Operation.EMBEDDING, EmbeddingRequest)


async def _generate(exchange: Exchange, operation: Operation, type_: type[Any]) -> None:
    """Authenticate, parse, run, answer. The key is checked before the body is read."""
    exchange.style = "openai"
    platform = exchange.platform
    secret = exchange.secret()
    caller = await platform.admission.authenticate(secret, address=exchange.address, scope=SCOPE)
    exchange.require_json()
    body = await exchange.body()
    request, fields = decode(body, type_, max_depth=platform.settings.server.max_json_depth)
    call = new_call(exchange, caller, operation=operation, request=request, fields=fields)
    run = await platform.corridor.admit(call, secret)
    exchange.levels = run.reservation.levels
    exchange.guard(run.interrupt)
    await (stream(exchange, run) if call.stream else answer(exchange, run))


def new_call(exchange: Exchange, caller: Caller, *, operation: Operation, request: Any, fields: Any) -> Call:
    """The call of a request whose body was parsed. Raises: BadRequest for bad metadata."""
    metadata = metadata_tags(request.metadata)
    return Call(
        id=exchange.request_id,
        caller=caller,
        endpoint=exchange.path,
        operation=operation,
        model=request.model,
        request=request,
        fields=fields,
        started_us=exchange.started_us,
        started_s=exchange.started_s,
        deadline_s=exchange.started_s + exchange.platform.settings.server.call_timeout_s,
        stream=bool(getattr(request, "stream", False)),
        version=getattr(request, "model_version", None),
        metadata=metadata,
        traceparent=exchange.traceparent.decode(),
        cache_control=exchange.header(b"cache-control"),
        route=exchange.header(_ROUTE) or metadata.get(METADATA, ""),
    )


async def answer(exchange: Exchange, run: Run) -> None:
    """Collect the stream into one JSON body."""
    body = b""
    pieces: list[bytes] = []
    async for delta in run.deltas():
        if delta.whole:
            body = delta.raw
        else:
            pieces.append(delta.raw)
    if not body:
        body = fold(pieces, run.usage)
    headers = served_headers(exchange, run)
    headers += cost_headers(exchange, run)
    await exchange.respond(200, body, headers=headers)


async def stream(
    exchange: Exchange, run: Run, *, deltas: AsyncGenerator[Delta] | None = None, voice: Voice = OPENAI
) -> None:
    """Pass the answer on as it comes. An error before the first delta with something in it is an ordinary answer.

    `deltas` are those of `run` in the words of `voice`, where that is not OpenAI's.
    """
    own = deltas is None
    if deltas is None:
        deltas = run.deltas()
    exchange.last_words = voice.broken
    try:
        first = await anext(deltas, None)
        while first is not None and not first.raw:
            first = await anext(deltas, None)
        if first is None:
            raise UpstreamFailed("The model ended without an answer.")
        headers = served_headers(exchange, run)
        await exchange.start_stream(headers if run.paid is None else headers + budget_headers(run))
        await exchange.send(first.raw)
        await _pass_on(exchange, deltas, voice.silence, run if own else None)
        last = voice.ending()
    except ModelportError as error:
        if not exchange.started:
            raise
        # The status line said 200 long ago; the log says what became of it.
        exchange.status = error.status
        last = voice.broken(error)
    finally:
        await deltas.aclose()
    await exchange.finish(last)


async def _pass_on(exchange: Exchange, deltas: AsyncGenerator[Delta], keep_alive: bytes, run: Run | None) -> None:
    """Send each delta; in long silences send `keep_alive`, so that proxies in between keep the connection open.

    `run`: the one whose deltas these are, where nobody translates them on their way.
    """
    silence, out = Silence(exchange, keep_alive), exchange.out
    put = out.put

    def relay(raw: bytes) -> bool:
        silence.broken = True
        return put(raw)

    if run is not None:
        run.relay = Relay(relay)
    try:
        async for delta in deltas:
            if delta.raw:
                silence.broken = True
                if not put(delta.raw):
                    await out.piece(delta.raw)
    finally:
        silence.close()


class Silence:
    """Sends `word` whenever nothing was sent for a whole interval. One timer, never re-armed per chunk."""

    __slots__ = ("_exchange", "_interval_s", "_loop", "_sending", "_timer", "_word", "broken")

    def __init__(self, exchange: Exchange, word: bytes) -> None:
        self._exchange = exchange
        self._word = word
        self._interval_s = exchange.platform.settings.server.stream_keep_alive_s / 2
        self.broken = True
        self._sending: asyncio.Task[None] | None = None
        self._loop = exchange.platform.corridor.loop
        self._timer = self._loop.call_later(self._interval_s, self._tick)

    def _tick(self) -> None:
        if not self.broken and (self._sending is None or self._sending.done()):
            self._sending = asyncio.create_task(self._exchange.send(self._word))
        self.broken = False
        self._timer = self._loop.call_later(self._interval_s, self._tick)

    def close(self) -> None:
        self._timer.cancel()
        if self._sending is not None:
            self._sending.cancel()


def served_headers(exchange: Exchange, run: Run) -> Headers:
    """What answered, and how long it took until now."""
    attempts = run.attempts
    served = attempts.plan.served
    if attempts.plan.deprecation is not None:
        exchange.deprecations += (attempts.plan.deprecation,)
    headers = [
        *_model_headers(run.requested, served.model, served.version),
        (b"openai-processing-ms", b"%d" % round(exchange.elapsed_s() * 1000)),
    ]
    if attempts.records is not None:
        headers.append((b"x-attempts", b"%d" % attempts.count))
        if attempts.fallback is not None:
            headers.append((b"x-fallback", attempts.fallback.value.encode()))
    if run.ticket is not None:
        headers += _cache_headers(run.ticket)
    if run.call.experiment is not None:
        headers.append((b"x-experiment", run.call.experiment.encode()))
    return headers


# Of the names that callers use; what is dropped is only written again.
@lru_cache(maxsize=4096)
def _model_headers(requested: str, model: str, version: str) -> tuple[tuple[bytes, bytes], ...]:
    return (
        (b"x-model-requested", requested.encode("latin-1", "replace")),
        (b"x-model-served", model.encode()),
        (b"x-model-version", version.encode()),
    )


def _cache_headers(ticket: Ticket) -> Headers:
    headers = [(b"x-cache", ticket.outcome.encode())]
    if ticket.similarity is not None:
        headers.append((b"x-cache-similarity", b"%.4f" % ticket.similarity))
    return headers


def cost_headers(exchange: Exchange, run: Run) -> Headers:
    """What the answer cost, and what it left."""
    cost = [(b"x-cost-usd", format_usd(run.cost_nanos).encode())]
    return cost if run.paid is None else cost + budget_headers(run, ended=True)


def budget_headers(run: Run, *, ended: bool = False) -> Headers:
    """What further calls could spend of the tightest budget: beside this one's reservation, or once it has ended."""
    if run.paid is None:
        return []
    left = run.paid.left_nanos(run.cost_nanos if ended else None)
    return [] if left is None else [(b"x-budget-remaining-usd", format_usd(left).encode())]
