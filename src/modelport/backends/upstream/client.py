"""One upstream over HTTP: its connections, the headers that every call carries, its time limits and its refusals."""

from __future__ import annotations

import re
import ssl
from collections.abc import Mapping

from modelport import __version__
from modelport.backends.transport import HttpPool, Response, Timeouts, header_block
from modelport.backends.upstream.refusals import refusal
from modelport.calls import Call
from modelport.errors import CallTimeout, ModelportError
from modelport.kit.clock import Clock, SystemClock
from modelport.settings import UpstreamSettings

# What the transport writes itself: a second one could make two servers disagree where a request ends.
_FRAMING = frozenset({"content-length", "transfer-encoding", "host", "connection"})
# An error's text is short; a page that is longer than this is no inference API's.
MAX_REFUSAL_BYTES = 1_000_000
# Source: W3C Trace Context, section 3.2.
_TRACEPARENT = re.compile(r"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}")


class UpstreamClient:
    """Sends calls to one server. The caller's key is never sent. Connections are opened as they are needed."""

    def __init__(
        self,
        settings: UpstreamSettings,
        *,
        headers: Mapping[str, str],
        clock: Clock | None = None,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        """`headers` are the dialect's own: credentials, versions. A configured header replaces one of the same name.
        `tls` replaces the machine's own trust. Raises: ValueError for an address or header that can't be used."""
        self.name = settings.name
        self._settings = settings
        self._clock = clock or SystemClock()
        self._headers = _static_headers(settings, headers)
        self.pool = HttpPool(
            settings.name,
            settings.base_url,
            max_connections=settings.max_connections,
            max_body_bytes=settings.max_answer_bytes,
            tls=tls,
        )

    async def post(self, call: Call, path: bytes, body: bytes, *, headers: bytes = b"") -> Response:
        """The head of a good answer. Whoever has it must end with `close` or `release`.

        Raises: UpstreamFailed, UpstreamRejected, Overloaded, CallTimeout.
        """
        response = await self.pool.request(
            b"POST",
            path,
            headers=self._headers + headers + _call_headers(call),
            body=body,
            timeouts=self._timeouts(call),
        )
        if 200 <= response.status < 300:
            return response
        try:
            raise await self._refused(response)
        finally:
            response.close()

    async def _refused(self, response: Response) -> ModelportError:
        return refusal(
            self.name,
            response.status,
            await response.read(limit_bytes=MAX_REFUSAL_BYTES),
            retry_after=response.header(b"retry-after"),
            now_us=self._clock.now_us(),
        )

    def _timeouts(self, call: Call) -> Timeouts:
        """An answer that does not stream begins when the last token is made, so only its deadline bounds it."""
        left_s = call.deadline_s - self._clock.monotonic_s()
        if left_s <= 0:
            raise CallTimeout()
        settings = self._settings
        first_s = settings.first_token_timeout_s if call.stream else left_s
        return Timeouts(settings.connect_timeout_s, first_s, settings.between_tokens_timeout_s, left_s)


def _static_headers(settings: UpstreamSettings, own: Mapping[str, str]) -> bytes:
    headers = {"user-agent": f"modelport/{__version__}", "accept-encoding": "identity", **own}
    headers |= {name.lower(): value for name, value in settings.headers.items()}
    refused = _FRAMING.intersection(headers)
    if refused:
        raise ValueError(f"upstream {settings.name!r} may not set the header {min(refused)!r}")
    headers["content-type"] = "application/json"
    return header_block(headers.items())


def _call_headers(call: Call) -> bytes:
    traceparent = call.traceparent
    if traceparent is None or not _TRACEPARENT.fullmatch(traceparent):
        return b"x-request-id: %b\r\n" % call.id.encode()
    return b"x-request-id: %b\r\ntraceparent: %b\r\n" % (call.id.encode(), traceparent.encode())
