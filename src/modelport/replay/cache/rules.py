"""Which calls ask the same, and whether a stored answer may be given. Pure.

Source: RFC 9111 sections 5.2.1 (what a request's Cache-Control asks).
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import msgspec

from modelport.calls import Call, Operation
from modelport.settings import ModelCacheSettings

# How an answer is to be sent and on whose account is no part of what is asked.
NOT_ASKED = frozenset({"stream", "stream_options", "user", "metadata"})
_WHOLE_BASIS_POINTS = 10_000
_MAX_AGE_DIGITS = 9
# Stands in for the text of a message: no content that a client may send is an object.
_TEXT_TAKEN_OUT = {"\0": "text"}

_decode = msgspec.json.Decoder().decode
_encode = msgspec.json.Encoder(order="sorted").encode


@dataclass(frozen=True, slots=True)
class CacheControl:
    """`no_cache`: answer anew, and store it. `no_store`: neither look nor store. `max_age_s`: no older answer."""

    no_cache: bool = False
    no_store: bool = False
    max_age_s: int | None = None


@dataclass(frozen=True, slots=True)
class Question:
    """A chat's last user message, and a hash of everything else that was asked."""

    text: str
    rest: str


# Clients send a few forms of it; what is dropped is only read again.
@lru_cache(maxsize=256)
def parse_cache_control(field: str | None) -> CacheControl:
    """What a request's `Cache-Control` asks; directives that mean nothing here are left out."""
    if not field:
        return CacheControl()
    found: dict[str, str] = {}
    for part in field.lower().split(","):
        name, _, value = part.partition("=")
        found[name.strip()] = value.strip().strip('"')
    age = found.get("max-age", "")
    max_age_s = int(age[:_MAX_AGE_DIGITS]) if age.isascii() and age.isdigit() else None
    return CacheControl("no-cache" in found or max_age_s == 0, "no-store" in found, max_age_s)


def is_cacheable(call: Call, options: ModelCacheSettings) -> bool:
    """Whether the model's options let this call be answered from the cache at all."""
    if call.partial or call.operation is Operation.INFER:
        return False
    if not options.temperature0_only or call.operation not in (Operation.CHAT, Operation.COMPLETION):
        return True
    return bool(call.request.temperature == 0)


def cache_key(call: Call, *, options: ModelCacheSettings, version: str) -> str:
    """The SHA-256 of all that decides an answer. `version` names the model's version and configuration.

    The tenant is the first part of it: no two organizations ever share an answer.
    """
    return _hash(_head(call, options, version), _asked(call))


def question_of(call: Call, *, options: ModelCacheSettings, version: str) -> Question | None:
    """The call as a question that another call may have asked in other words; None where it is none: not a chat in
    OpenAI's dialect, or its last user message has more than text."""
    if call.operation is not Operation.CHAT or call.original is not None or "messages" not in call.fields:
        return None
    asked = _asked(call)
    for message in reversed(asked["messages"]):
        if message.get("role") == "user":
            text = _text_of(message.get("content"))
            if text is None:
                return None
            message["content"] = _TEXT_TAKEN_OUT
            return Question(text, _hash(_head(call, options, version), asked))
    return None


def hit_discount(discount_basis_points: int, *, price_basis_points: int) -> int:
    """The discount, in basis points, of a call that pays this share of a price that is discounted already. Rounded in
    the customer's favour."""
    paid = (_WHOLE_BASIS_POINTS - discount_basis_points) * price_basis_points // _WHOLE_BASIS_POINTS
    return _WHOLE_BASIS_POINTS - paid


def _head(call: Call, options: ModelCacheSettings, version: str) -> list[str]:
    caller = call.caller
    tenant = caller.key_id if options.scope == "key" else caller.organization_id
    return [tenant, caller.mode, call.operation.value, call.model, version, call.route]


def _asked(call: Call) -> dict[str, Any]:
    """The request's members, decoded: order, white space and escapes are gone. Where a door translated it, what it
    came as is part of it, since an upstream of the same dialect gets that."""
    asked = _members(call)
    if call.original is not None:
        told = {name: _decode(raw) for name, raw in call.original.fields.items() if name not in NOT_ASKED}
        asked["\0original"] = [call.original.dialect, dict(call.original.headers), told]
    return asked


def _members(call: Call) -> dict[str, Any]:
    if call.fields:
        return {name: _decode(raw) for name, raw in call.fields.items() if name not in NOT_ASKED}
    # A door that took the request out of a form; there is no JSON of the client's to go by.
    members = msgspec.structs.asdict(call.request)
    if "inputs" in members:
        members["inputs"] = [_file(item) for item in members["inputs"]]
    return {name: value for name, value in members.items() if name not in NOT_ASKED}


def _file(item: Any) -> Any:
    return {"sha256": hashlib.sha256(item).hexdigest()} if isinstance(item, bytes) else item


def _text_of(content: Any) -> str | None:
    if isinstance(content, str):
        return content
    if not isinstance(content, list) or not content:
        return None
    texts = [part.get("text") for part in content if isinstance(part, dict) and part.get("type") == "text"]
    if len(texts) != len(content) or not all(isinstance(text, str) for text in texts):
        return None
    return "\n".join(texts)  # type: ignore[arg-type]


def _hash(head: list[str], asked: dict[str, Any]) -> str:
    return hashlib.sha256(_encode([head, asked])).hexdigest()
