"""What is kept of a request with an `Idempotency-Key`: who runs it, and what came of it."""

from __future__ import annotations

from dataclasses import dataclass

import msgspec


@dataclass(frozen=True, slots=True)
class Claim:
    """The right to run a request, held by the call `call_id` until it is kept, released or lost with its process.

    `key_hash` and `fingerprint` are SHA-256 in hexadecimal.
    """

    organization_id: str
    key_hash: str
    fingerprint: str
    call_id: str


@dataclass(frozen=True, slots=True)
class Record:
    """What the table says of a key. `lease_us` is None once the call has ended; `answer` then is None where it was too
    large to keep."""

    fingerprint: str
    call_id: str
    lease_us: int | None
    answer: bytes | None


class KeptAnswer(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """An answer as it went out. `streamed`: without a length, as server-sent events go out."""

    status: int
    headers: list[tuple[bytes, bytes]]
    body: bytes
    streamed: bool
