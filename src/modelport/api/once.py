"""Requests with an `Idempotency-Key`: run once, recorded on the way out, and answered from the record when repeated.

The answer is kept before its last byte is sent, so whoever saw its end can't run the request again.
"""

from __future__ import annotations

import gzip

from modelport.api.exchange import Exchange, accepts_gzip
from modelport.api.wire import AnswerWriter, Headers
from modelport.calls import Caller
from modelport.errors import ModelNotFound, Unauthenticated, Unavailable
from modelport.inference.corridor import SCOPE
from modelport.replay.idempotency.model import Claim, KeptAnswer
from modelport.replay.idempotency.rules import claim_of, is_kept, parse_key
from modelport.replay.idempotency.seal import pack, unpack
from modelport.replay.idempotency.service import Idempotency

HEADER = b"idempotency-key"
_REPLAYED = (b"idempotent-replayed", b"true")
# A failure that is kept fails again under the same key, which SDKs would find out by trying.
_FOR_GOOD = (b"x-should-retry", b"false")
_OF_COMPRESSION = (b"content-encoding", b"content-length")


async def replayed_call(exchange: Exchange) -> bool:
    """Claim an inference request; true when it was answered from what is kept, and is not to run.

    Raises: BadRequest for a bad key, Unauthenticated, PermissionDenied, LimitExceeded, BodyTooLarge,
    IdempotencyInFlight, IdempotencyMismatch, IdempotencyNotKept; Unavailable without the database.
    """
    platform, secret = exchange.platform, exchange.secret()
    caller = await platform.admission.authenticate(secret, address=exchange.address, scope=SCOPE)
    claim = _claim(exchange, caller, await exchange.body())
    kept = await _claimed(exchange, claim, secret, seal_for=None)
    if kept is None:
        return False
    _check_model(exchange, caller, kept)
    await platform.admission.count_repeat(exchange.request_id, caller, secret)
    await _replay(exchange, kept)
    return True


async def replayed_request(exchange: Exchange) -> bool:
    """The same for the management API, whose answers may hold secrets and are sealed for the API key that asked.

    False also where no API key tells whose request it is.
    """
    platform = exchange.platform
    try:
        secret = exchange.secret()
        caller = await platform.keyring.authenticate(secret, address=exchange.address)
    except Unauthenticated:
        return False
    claim = _claim(exchange, caller, await exchange.body())
    kept = await _claimed(exchange, claim, secret, seal_for=secret)
    if kept is None:
        return False
    await platform.admission.count_management_repeat(exchange.request_id, caller, secret)
    await _replay(exchange, kept)
    return True


def _claim(exchange: Exchange, caller: Caller, body: bytes) -> Claim:
    key = parse_key(exchange.header(HEADER) or "")
    return claim_of(
        caller, key, method=exchange.scope["method"], path=exchange.path, body=body, call_id=exchange.request_id
    )


async def _claimed(exchange: Exchange, claim: Claim, secret: str, *, seal_for: str | None) -> KeptAnswer | None:
    """None when the request is to run, its answer recorded from now on; else the answer that is kept."""

    def stop() -> None:
        if exchange.interrupt is not None:
            exchange.interrupt.fire(Unavailable("Another server has taken this request over; repeat it there."))

    idempotency = exchange.platform.idempotency
    stored = await idempotency.claim(claim, on_lost=stop)
    if stored is not None:
        return unpack(stored, claim, secret=secret)
    exchange.record(Recorder(exchange, idempotency, claim, seal_for=seal_for))
    return None


def _check_model(exchange: Exchange, caller: Caller, kept: KeptAnswer) -> None:
    """Raises: ModelNotFound where another key of the organization asked, and this one may not use the model."""
    if caller.models is None:
        return
    name = dict(kept.headers).get(b"x-model-requested", b"").decode("latin-1")
    if not name or not caller.may_use(exchange.platform.catalog.get(name)[0].id):
        raise ModelNotFound("The model does not exist or is not open to this key.", param="model")


async def _replay(exchange: Exchange, kept: KeptAnswer) -> None:
    """The kept answer, byte for byte, in the encoding that this client reads."""
    headers, body = kept.headers, kept.body
    if (b"content-encoding", b"gzip") in headers and not accepts_gzip(
        (exchange.header(b"accept-encoding") or "").encode("latin-1")
    ):
        body = gzip.decompress(body)
        headers = [field for field in headers if field[0] not in _OF_COMPRESSION]
    exchange.platform.metrics.idempotent_replays.inc()
    await exchange.give(kept.status, [*headers, *exchange.extra, _REPLAYED], body, streamed=kept.streamed)


class Recorder:
    """Keeps what goes through it, and has it sent by the exchange's wire."""

    def __init__(
        self, exchange: Exchange, idempotency: Idempotency, claim: Claim, *, seal_for: str | None
    ) -> None:  # fmt: skip
        self._exchange = exchange
        self._wire: AnswerWriter = exchange.wire
        self._idempotency = idempotency
        self._claim = claim
        self._seal_for = seal_for
        self._headers: Headers = []
        # None once it is more than what is kept.
        self._body: bytearray | None = bytearray()
        self._ended = False

    async def whole(self, status: int, headers: Headers, body: bytes) -> None:
        if status >= 500 and is_kept(status) and not any(name == _FOR_GOOD[0] for name, _ in headers):
            headers.append(_FOR_GOOD)
        self._note(headers, body)
        await self._end(status, streamed=False)
        await self._wire.whole(status, headers, body)

    async def begin(self, status: int, headers: Headers) -> None:
        self._note(headers, b"")
        await self._wire.begin(status, headers)

    async def piece(self, data: bytes) -> None:
        self._add(data)
        await self._wire.piece(data)

    def put(self, data: bytes) -> bool:
        if not self._wire.put(data):
            return False
        self._add(data)
        return True

    async def end(self, data: bytes) -> None:
        self._add(data)
        # What the status line said is 200; what became of the stream is known to the exchange.
        await self._end(self._exchange.status, streamed=True)
        await self._wire.end(data)

    def close(self) -> None:
        """The request is over; where its answer did not come to its end, nothing is kept."""
        if not self._ended:
            self._ended = True
            self._idempotency.abandon(self._claim)

    def _note(self, headers: Headers, body: bytes) -> None:
        # What depends on who asks, and not on what is asked, each repeat has of its own.
        own = set(self._exchange.extra)
        self._headers = [field for field in headers if field not in own]
        self._add(body)

    def _add(self, data: bytes) -> None:
        if self._body is not None:
            self._body += data
            if len(self._body) > self._idempotency.max_answer_bytes:
                self._body = None

    async def _end(self, status: int, *, streamed: bool) -> None:
        self._ended = True
        if not is_kept(status):
            await self._idempotency.release(self._claim)
            return
        answer: bytes | None = None
        if self._body is not None:
            # A stream that failed began with 200, and is given again as it was.
            kept = KeptAnswer(200 if streamed else status, self._headers, bytes(self._body), streamed)
            answer = pack(kept, self._claim, secret=self._seal_for)
        await self._idempotency.keep(self._claim, answer)
