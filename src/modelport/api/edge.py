"""The outermost layer: request ids, hot routes, error answers, CORS, the access log and the call metrics.

The hot routes are served right here; everything else goes on to FastAPI, by ASGI, and its answers get the same headers
on their way out.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import structlog

from modelport.api import once
from modelport.api.deprecation_headers import deprecation_headers
from modelport.api.exchange import Exchange, accepts_gzip
from modelport.api.failures import failure, speaks_anthropic
from modelport.api.limit_headers import ANTHROPIC_NAMES, limit_headers
from modelport.api.platform import Platform
from modelport.api.problems import levels_of
from modelport.api.wire import Headers, Wire
from modelport.api.ws.session import converse
from modelport.catalog.deprecation import RouteDeprecations
from modelport.errors import (
    BadRequest,
    BudgetExceeded,
    CallCancelled,
    Gone,
    Internal,
    MethodNotAllowed,
    ModelportError,
    Overloaded,
    Unavailable,
)
from modelport.observe.logs import access_line
from modelport.observe.logs import request_id as current_request_id

Handler = Callable[[Exchange], Awaitable[None]]
# The management API's bodies are small, and those who send them are not known before they are read.
MAX_MANAGEMENT_BYTES = 1_000_000
_ONLY_POST = [(b"allow", b"POST, OPTIONS")]
# A cache knows that an answer to `Authorization` is one caller's alone; of `X-API-Key` it knows nothing.
_NOT_KEPT = ((b"cache-control", b"no-store"),)
_NUL = re.compile(rb"(?<!\\)(?:\\\\)*\\u0000")
_EXPOSED = b", ".join(
    [
        b"x-request-id, request-id, x-model-requested, x-model-served, x-model-version, x-cache, x-cache-similarity",
        b"x-experiment",
        b"idempotent-replayed, x-cost-usd, x-budget-remaining-usd, openai-processing-ms, retry-after, retry-after-ms",
        b"x-should-retry, ratelimit, ratelimit-policy, x-ratelimit-limit, x-ratelimit-remaining, x-ratelimit-reset",
        b"x-ratelimit-limit-requests, x-ratelimit-remaining-requests, x-ratelimit-reset-requests",
        b"x-ratelimit-limit-tokens, x-ratelimit-remaining-tokens, x-ratelimit-reset-tokens",
        b"deprecation, sunset, link, traceparent, x-attempts, x-fallback",
        *ANTHROPIC_NAMES,
    ]
)
_FLOODED = Overloaded("More calls come than this server can answer in time; try again in a second.")
log = structlog.get_logger("modelport.api")


class Edge:
    """What the server has its requests answered by."""

    def __init__(
        self, platform: Platform, *, hot: Mapping[str, Handler], rest: Any, retired: RouteDeprecations
    ) -> None:
        self._platform = platform
        self._hot = {path: handler for path, handler in hot.items() if "{" not in path}
        # Those with a model's name in their path are known by what stands before and behind it.
        self._named = [(*_ends(path), handler) for path, handler in hot.items() if "{" in path]
        self._rest = rest
        self._origins = frozenset(platform.settings.server.cors_origins)
        # None where nothing ends, so that a request pays one test for it.
        self._retired = retired if retired.rows else None

    async def answer(self, wire: Wire) -> None:
        """Find who serves the request, and see to it that it is answered whatever happens."""
        request_id = self._platform.ids.new("req_")
        current_request_id.set(request_id)
        exchange = Exchange(wire, platform=self._platform, request_id=request_id)
        scope = exchange.scope
        origin = exchange.header(b"origin")
        if origin is not None:
            exchange.extra = self._cors(origin)
        handler = self._hot.get(exchange.path) or self._find(exchange.path)
        try:
            exchange.check_headers()
            if self._retired is not None:
                _check_retired(exchange, self._retired)
            if wire.tunnel:
                await self._serve(exchange, converse)
            elif handler is None:
                await self._pass_on(exchange)
            elif scope["method"] == "POST":
                await self._serve(exchange, handler)
            elif scope["method"] == "OPTIONS" and origin is not None:
                await self._preflight(exchange)
            else:
                await self._fail(exchange, MethodNotAllowed("This route is called with POST."), headers=_ONLY_POST)
        except ModelportError as error:
            await self._fail(exchange, error)
        finally:
            exchange.close()
            self._record(exchange, counted=handler is not None or wire.tunnel)

    async def turn_away(self, wire: Wire) -> None:
        """Refuse a call before anything is done about it. Whatever is no call is answered: health above all."""
        path, platform = wire.scope["path"], self._platform
        if path not in self._hot and self._find(path) is None:
            await self.answer(wire)
            return
        request_id = platform.ids.new("req_")
        told = failure(_FLOODED, request_id=request_id, path=path, base_url=platform.settings.server.public_url)
        platform.metrics.refused(_FLOODED.code)
        headers = [
            (b"content-type", told.content_type),
            (b"content-length", b"%d" % len(told.body)),
            (b"x-request-id", request_id.encode()),
            *told.headers,
        ]
        if speaks_anthropic(path):
            headers.append((b"request-id", request_id.encode()))
        await wire.whole(told.status, headers, told.body)

    def _find(self, path: str) -> Handler | None:
        for before, after, handler in self._named:
            if path.startswith(before) and path.endswith(after):
                return handler
        return None

    async def _serve(self, exchange: Exchange, handler: Handler) -> None:
        """Run a hot route; whatever it raises becomes an error answer."""
        try:
            if exchange.wire.tunnel or exchange.header(once.HEADER) is None or not await once.replayed_call(exchange):
                await handler(exchange)
        except ModelportError as error:
            await self._fail(exchange, error)
        except asyncio.CancelledError:
            interrupt = exchange.interrupt
            if interrupt is None or interrupt.claim() is None:
                if exchange.streaming:
                    stopping = Unavailable("The server stops; the rest is lost. Call again.")
                    exchange.status = stopping.status
                    await exchange.finish(exchange.last_words(stopping))
                raise
            exchange.status = CallCancelled.status
        except Exception:
            log.exception("call_failed", request_id=exchange.request_id, path=exchange.path)
            await self._fail(exchange, Internal())

    async def _fail(self, exchange: Exchange, error: ModelportError, *, headers: Headers | None = None) -> None:
        if isinstance(error, BudgetExceeded) and exchange.style == "openai":
            error = error.as_quota()
        if error.internal is not None or error.status >= 500:
            log.warning("call_error", request_id=exchange.request_id, code=error.code, internal=error.internal)
        # The class's own: an upstream's refusal brings a code of its own, and a label must not be anybody's word.
        self._platform.metrics.refused(type(error).code)
        if exchange.started or isinstance(error, CallCancelled):
            exchange.status = error.status
            if exchange.streaming:
                await exchange.finish(exchange.last_words(error))
            return
        exchange.levels = list(levels_of(error)) or exchange.levels  # type: ignore[arg-type]
        if isinstance(error, Gone) and error.deprecation not in exchange.deprecations:
            exchange.deprecations += (error.deprecation,)  # type: ignore[operator]
        if speaks_anthropic(exchange.path):
            exchange.speak_anthropic()
        told = failure(
            error,
            request_id=exchange.request_id,
            path=exchange.path,
            base_url=self._platform.settings.server.public_url,
        )
        await exchange.respond(
            told.status,
            told.body,
            headers=[*told.headers, *(headers or ())],
            content_type=(b"content-type", told.content_type),
        )

    async def _pass_on(self, exchange: Exchange) -> None:
        """FastAPI serves it; our headers are added when the answer starts."""
        scope = exchange.scope
        scope["modelport.request_id"] = exchange.request_id
        if speaks_anthropic(exchange.path):
            exchange.speak_anthropic()
        if scope["method"] == "OPTIONS" and exchange.extra:
            await self._preflight(exchange)
            return
        scope, receive = await self._checked(exchange)
        keyed = scope["method"] == "POST" and exchange.header(once.HEADER) is not None
        if keyed and await once.replayed_request(exchange):
            return
        whole: list[Any] = []

        async def send(message: Any) -> None:
            if message["type"] == "http.response.start":
                exchange.started, exchange.status = True, message["status"]
                message["headers"] = [*message.get("headers", []), *self._control_headers(exchange)]
            if keyed:
                # It is kept before any of it is sent.
                whole.append(message)
            else:
                await exchange.wire.send(message)

        try:
            await self._rest(scope, receive, send)
        except Exception:
            log.exception("request_failed", request_id=exchange.request_id, path=exchange.path)
            await self._fail(exchange, Internal())
        if whole:
            body = b"".join(message.get("body", b"") for message in whole)
            await exchange.give(exchange.status, whole[0]["headers"], body)

    async def _checked(self, exchange: Exchange) -> tuple[Any, Any]:
        """The scope and receive that FastAPI is given: HEAD as GET, and a body that has arrived and is not too large.

        Raises: BadRequest, also for NUL, which no text in PostgreSQL can hold.
        """
        scope = exchange.scope
        if scope["method"] == "HEAD":
            # The wire knows it by its own scope, and leaves the body out.
            scope = exchange.scope = {**scope, "method": "GET"}
        coding = exchange.header(b"accept-encoding")
        if coding is not None:
            # The middleware looks for the bare word alone.
            wanted = b"gzip" if accepts_gzip(coding.encode("latin-1")) else b"identity"
            others = [field for field in scope["headers"] if field[0] != b"accept-encoding"]
            scope = exchange.scope = {**scope, "headers": [*others, (b"accept-encoding", wanted)]}
        most = min(MAX_MANAGEMENT_BYTES, self._platform.settings.server.max_body_bytes)
        body = await exchange.body(most_bytes=most)
        if "\0" in scope["path"] or b"%00" in scope["query_string"] or _NUL.search(body):
            raise BadRequest("The request has a NUL character, which is no text.")
        return scope, exchange.receive_once(body)

    def _control_headers(self, exchange: Exchange) -> Headers:
        levels = exchange.scope.get("modelport.levels") or []
        public_url = self._platform.settings.server.public_url
        return [
            (b"x-request-id", exchange.request_id.encode()),
            (b"traceparent", exchange.traceparent),
            *(_NOT_KEPT if exchange.path.startswith("/v1/") else ()),
            *exchange.extra,
            *(deprecation_headers(exchange.deprecations, public_url) if exchange.deprecations else ()),
            *(limit_headers(levels, style="x", now_us=exchange.started_us) if levels else []),
        ]

    def _cors(self, origin: str) -> Headers:
        """What lets a browser's script read the answer. Keys travel in headers, never in cookies, so `*` is safe."""
        if "*" in self._origins:
            allowed = b"*"
        elif origin in self._origins:
            allowed = origin.encode("latin-1")
        else:
            return [(b"vary", b"origin")]
        return [
            (b"access-control-allow-origin", allowed),
            (b"access-control-expose-headers", _EXPOSED),
            (b"vary", b"origin"),
        ]

    async def _preflight(self, exchange: Exchange) -> None:
        asked = exchange.header(b"access-control-request-headers") or "authorization, content-type"
        exchange.extra = [
            *exchange.extra,
            (b"access-control-allow-methods", b"GET, POST, PATCH, PUT, DELETE, OPTIONS"),
            (b"access-control-allow-headers", asked.encode("latin-1")),
            (b"access-control-max-age", b"600"),
        ]
        await exchange.respond(204, b"")

    def _record(self, exchange: Exchange, *, counted: bool) -> None:
        """`counted`: calls are, in the corridor, where more is known of them."""
        seconds = exchange.elapsed_s()
        if not counted:
            route = getattr(exchange.scope.get("route"), "path", "other")
            self._platform.metrics.request(route, exchange.status, seconds)
        if self._platform.settings.log.access:
            access_line(
                request_id=exchange.request_id,
                method=exchange.scope["method"],
                path=exchange.path,
                status=exchange.status,
                duration_ms=round(seconds * 1000, 2),
                trace_id=exchange.trace.trace_id,
            )


def _ends(path: str) -> tuple[str, str]:
    """What stands before the first and behind the last name in the path of a route."""
    return path[: path.index("{")], path[path.rindex("}") + 1 :]


def _check_retired(exchange: Exchange, retired: RouteDeprecations) -> None:
    """Raises: Gone for a route after its sunset; before it, the answer says when that is."""
    found = retired.find(exchange.path)
    if found is not None:
        exchange.deprecations = (found,)
        found.check(exchange.started_us)
