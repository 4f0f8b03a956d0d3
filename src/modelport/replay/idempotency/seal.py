"""Answers as they lie in the table: plain, or sealed for the API key that asked.

An answer of the management API may hold a secret that is shown once (a new API key). It is sealed with a key derived
from the caller's own API key, of which the platform stores nothing but a hash: neither a copy of the database nor the
operator can open it, and the caller, who sends that key with the repeat, can.

Source: RFC 5869 (HKDF), RFC 5116 (AEAD, AES-256-GCM).
"""

from __future__ import annotations

import os

import msgspec

from modelport.errors import IdempotencyMismatch
from modelport.replay.idempotency.model import Claim, KeptAnswer

_PLAIN, _SEALED = b"\x00", b"\x01"
_SALT_BYTES, _KEY_BYTES = 16, 32
# Each answer has a key of its own, from a random salt, and each key seals one answer.
_NONCE = bytes(12)
_INFO = b"modelport idempotency 1"

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(KeptAnswer).decode


def pack(answer: KeptAnswer, claim: Claim, *, secret: str | None) -> bytes:
    """The answer's bytes for the table; sealed for `secret`, the caller's API key, where one is given."""
    plain = _encode(answer)
    if secret is None:
        return _PLAIN + plain
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

    salt = os.urandom(_SALT_BYTES)
    return _SEALED + salt + AESGCM(_derive(secret, salt)).encrypt(_NONCE, plain, _bound_to(claim))


def unpack(stored: bytes, claim: Claim, *, secret: str) -> KeptAnswer:
    """The answer that `pack` made into bytes. Raises: IdempotencyMismatch when it was sealed for another API key."""
    if stored[:1] == _PLAIN:
        return _decode(stored[1:])
    from cryptography.exceptions import InvalidTag
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

    salt, sealed = stored[1 : 1 + _SALT_BYTES], stored[1 + _SALT_BYTES :]
    try:
        return _decode(AESGCM(_derive(secret, salt)).decrypt(_NONCE, sealed, _bound_to(claim)))
    except InvalidTag:
        raise IdempotencyMismatch(
            "This Idempotency-Key was used with another API key, and only that one gets its answer again."
        ) from None


def _derive(secret: str, salt: bytes) -> bytes:
    from cryptography.hazmat.primitives.hashes import SHA256
    from cryptography.hazmat.primitives.kdf.hkdf import HKDF

    return HKDF(SHA256(), length=_KEY_BYTES, salt=salt, info=_INFO).derive(secret.encode())


def _bound_to(claim: Claim) -> bytes:
    """What the seal is good for: this request of this organization, and no other row."""
    return f"{claim.organization_id}\0{claim.key_hash}\0{claim.fingerprint}".encode()
