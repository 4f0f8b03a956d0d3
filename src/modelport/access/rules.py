"""The format of an API key, its scopes, and where it may be used from. Pure.

    mp_live_ | mp_test_    40 random characters of base62    6 characters of base62: CRC-32 of all before

The checksum is no secret: it tells a typing error, and most of what scanners find, from a key without a look-up.
A key is found by the SHA-256 of the whole of it, so no comparison anywhere depends on how many characters match.
"""

from __future__ import annotations

import hashlib
import secrets
import zlib
from collections.abc import Iterable
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network

from modelport.calls import Mode
from modelport.errors import BadRequest

Network = IPv4Network | IPv6Network

ALPHABET = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
PREFIXES: dict[Mode, str] = {"live": "mp_live_", "test": "mp_test_"}
_PREFIX_CHARS = 8
_RANDOM_CHARS = 40
_CHECKSUM_CHARS = 6
KEY_CHARS = _PREFIX_CHARS + _RANDOM_CHARS + _CHECKSUM_CHARS
_CHARACTERS = frozenset(ALPHABET)

# What each scope lets a key do, in one line each; the only list of scopes.
SCOPES: dict[str, str] = {
    "inference": "Call models: chat, completions, embeddings, predictions.",
    "models:read": "See which models there are, and their state and prices.",
    "jobs": "Submit, read and cancel jobs and batches.",
    "webhooks": "Manage webhook endpoints and read their deliveries.",
    "keys": "Create, list, change, rotate and revoke API keys.",
    "usage:read": "Read usage, receipts and statements.",
    "billing": "Manage budgets and read what is left of the limits.",
    "prompts": "Manage and render prompts.",
    "experiments": "Manage experiments and send feedback.",
    "organization": "Manage the organization, its projects and members, and read its audit log.",
    "admin": "Operate the installation, across organizations: circuits.",
}
# What no customer is given: only a key that has it can give it on, and the first start's operator key is the first.
OPERATOR_SCOPES = frozenset({"admin"})


def make_key(mode: Mode) -> str:
    """A new key: 238 random bits."""
    body = PREFIXES[mode] + "".join(secrets.choice(ALPHABET) for _ in range(_RANDOM_CHARS))
    return body + checksum(body)


def checksum(body: str) -> str:
    """CRC-32 of `body` as six characters of base62, most significant first."""
    number = zlib.crc32(body.encode())
    characters = []
    for _ in range(_CHECKSUM_CHARS):
        number, digit = divmod(number, len(ALPHABET))
        characters.append(ALPHABET[digit])
    return "".join(reversed(characters))


def find_mode(secret: str) -> Mode | None:
    """The mode of a well-formed key; None when it is none: prefix, length, alphabet or checksum is wrong."""
    if len(secret) != KEY_CHARS or not _CHARACTERS.issuperset(secret[_PREFIX_CHARS:]):
        return None
    body = secret[:-_CHECKSUM_CHARS]
    if checksum(body) != secret[-_CHECKSUM_CHARS:]:
        return None
    return next((mode for mode, prefix in PREFIXES.items() if body.startswith(prefix)), None)


# OpenSSL looks an algorithm up by its name each time one is made; a copy takes a third as long.
_SHA256 = hashlib.sha256()


def hash_key(secret: str) -> bytes:
    """SHA-256 of the whole key. A key has more random bits than the hash needs, so there is nothing to stretch."""
    digest = _SHA256.copy()
    digest.update(secret.encode(errors="replace"))
    return digest.digest()


def check_scopes(scopes: Iterable[str]) -> frozenset[str]:
    """The scopes as a set. Raises: BadRequest when one is unknown, or there is none."""
    wanted = frozenset(scopes)
    unknown = sorted(wanted - SCOPES.keys())
    if unknown:
        raise BadRequest(f"There is no scope {unknown[0]!r}. Scopes are: {', '.join(SCOPES)}.", param="scopes")
    if not wanted:
        raise BadRequest("A key needs at least one scope.", param="scopes")
    return wanted


def parse_networks(texts: Iterable[str]) -> tuple[Network, ...]:
    """Addresses and CIDR blocks. Raises: BadRequest that names the one that is wrong."""
    networks = []
    for text in texts:
        try:
            networks.append(ip_network(text.strip()))
        except ValueError:
            raise BadRequest(
                f"{text[:64]!r} is no IP address or CIDR block (such as 203.0.113.0/24).", param="allowed_ips"
            ) from None
    return tuple(networks)


def is_within(address: str, networks: tuple[Network, ...]) -> bool:
    """Whether `address` lies in one of the networks; IPv4 written as IPv6 counts as IPv4."""
    try:
        ip = ip_address(address.partition("%")[0])
    except ValueError:
        return False
    plain = getattr(ip, "ipv4_mapped", None) or ip
    return any(plain in network for network in networks)
