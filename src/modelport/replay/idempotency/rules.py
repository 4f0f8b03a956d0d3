"""What an `Idempotency-Key` is, which requests are the same, and which answers are kept. Pure.

Source: the platform's wire format; draft-ietf-httpapi-idempotency-key-header-07 (the field, a structured string);
RFC 9651 section 3.3.3 (how strings are written).
"""

from __future__ import annotations

import hashlib
import re

from modelport.calls import Caller
from modelport.errors import BadRequest, IdempotencyInFlight, IdempotencyMismatch, IdempotencyNotKept
from modelport.replay.idempotency.model import Claim, Record

MAX_KEY_CHARACTERS = 255
# Nobody knows when the call that runs will end; SDKs double this by themselves.
RETRY_S = 1.0

_QUOTED = re.compile(r'"((?:[^"\\]|\\["\\])*)"')
_ESCAPE = re.compile(r"\\([\"\\])")
_PRINTABLE = re.compile(r"[\x20-\x7e]+")


def parse_key(field: str) -> str:
    """The key in an `Idempotency-Key` field. `"abc"` and `abc` are the same key.

    Raises: BadRequest when it is empty, longer than 255 characters, or not printable ASCII.
    """
    text = field.strip()
    quoted = _QUOTED.fullmatch(text)
    key = _ESCAPE.sub(r"\1", quoted[1]) if quoted else text
    if not _PRINTABLE.fullmatch(key):
        raise BadRequest("The Idempotency-Key must be printable ASCII, quoted or bare, and not empty.")
    if len(key) > MAX_KEY_CHARACTERS:
        raise BadRequest(f"The Idempotency-Key is longer than {MAX_KEY_CHARACTERS} characters.")
    return key


def claim_of(caller: Caller, key: str, *, method: str, path: str, body: bytes, call_id: str) -> Claim:
    """What the call claims. The same request of one organization has the same fingerprint, whichever of its keys it
    comes with; a test key's requests are apart from a live key's, since their answers are."""
    organization_id = caller.organization_id
    body_hash = hashlib.sha256(body).hexdigest()
    request = "\0".join((method, path, organization_id, body_hash))
    return Claim(
        organization_id=organization_id,
        key_hash=hashlib.sha256(f"{caller.mode}\0{key}".encode()).hexdigest(),
        fingerprint=hashlib.sha256(request.encode()).hexdigest(),
        call_id=call_id,
    )


def is_kept(status: int) -> bool:
    """Whether an answer of this status is the request's for good.

    A refusal (4xx: not valid, not allowed, over a limit) ran nothing, 503 is over in a moment, and whoever hung up
    (499) has no answer: after these, the same key runs anew.
    """
    return status < 400 or (status >= 500 and status != 503)


def answer_of(record: Record, claim: Claim) -> bytes:
    """The stored answer that the repeat `claim` is owed.

    Raises: IdempotencyMismatch, IdempotencyInFlight, IdempotencyNotKept.
    """
    if record.fingerprint != claim.fingerprint:
        raise IdempotencyMismatch(
            "This Idempotency-Key was used for another request (method, path or body differ); use a new one."
        )
    if record.lease_us is not None:
        raise IdempotencyInFlight(
            "The request with this Idempotency-Key is still running; its answer comes to who repeats it later.",
            retry_after_s=RETRY_S,
        )
    if record.answer is None:
        raise IdempotencyNotKept(
            f"The request with this Idempotency-Key ran as {record.call_id}, and its answer was too large to keep. "
            "It is not run again; to run it again, use a new key."
        )
    return record.answer
