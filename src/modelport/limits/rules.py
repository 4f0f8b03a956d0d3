"""Which buckets a call draws from, and what a refusal says. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Literal

from modelport.calls import Caller, Limits
from modelport.errors import LimitExceeded
from modelport.state.protocol import Bucket, Level, Taken

Scope = Literal["organization", "key"]
Unit = Literal["requests", "tokens", "concurrent_calls"]

WINDOW_S = 60

# Names as answers report them: an organization's are bare, a key's say so.
REQUESTS, TOKENS, CALLS = "rpm", "tpm", "calls"
KEY_REQUESTS, KEY_TOKENS, KEY_CALLS = "key-rpm", "key-tpm", "key-calls"
MANAGEMENT = "management"

TOKEN_NAMES = frozenset({TOKENS, KEY_TOKENS})
_KEY_NAMES = frozenset({KEY_REQUESTS, KEY_TOKENS, KEY_CALLS, MANAGEMENT})


class Buckets:
    """What a caller's calls take: a request, tokens and a place among the concurrent calls, of the organization and
    of the key, wherever there is a limit. Test-mode calls have buckets of their own, so that a test never slows sales.
    """

    __slots__ = ("_buckets", "_tokens")

    def __init__(self, caller: Caller) -> None:
        self._buckets = (
            *_scope(f"{caller.mode}:{caller.organization_id}", caller.organization_limits, prefix=""),
            *_scope(f"{caller.mode}:{caller.key_id}", caller.key_limits, prefix="key-"),
        )
        # Where those of tokens are, which differ from call to call.
        self._tokens = [index for index, bucket in enumerate(self._buckets) if bucket.name in TOKEN_NAMES]

    def of(self, tokens: int) -> Sequence[Bucket]:
        """The buckets of a call that can use `tokens`."""
        if not self._tokens:
            return self._buckets
        buckets = list(self._buckets)
        for index in self._tokens:
            key, name, limit, window_s, _ = buckets[index]
            buckets[index] = Bucket(key, name, limit, window_s, tokens)
        return buckets


def _scope(owner: str, limits: Limits, *, prefix: str) -> Iterator[Bucket]:
    if limits.requests_per_minute is not None:
        yield Bucket(f"{owner}:rpm", prefix + REQUESTS, limits.requests_per_minute, WINDOW_S, 1)
    if limits.tokens_per_minute is not None:
        yield Bucket(f"{owner}:tpm", prefix + TOKENS, limits.tokens_per_minute, WINDOW_S, 0)
    if limits.concurrent_calls is not None:
        yield Bucket(f"{owner}:calls", prefix + CALLS, limits.concurrent_calls, 0, 1)


def management_buckets(caller: Caller, *, per_minute: int) -> list[Bucket]:
    """What one call to the management API takes."""
    return [Bucket(f"management:{caller.key_id}", MANAGEMENT, per_minute, WINDOW_S, 1)]


def settled_amounts(levels: Sequence[Level], *, tokens: int) -> list[int]:
    """What a call used in the end, in the order of its buckets: its request, its tokens, and its place given back."""
    return [tokens if level.bucket.name in TOKEN_NAMES else (1 if level.bucket.window_s else 0) for level in levels]


def refusal(taken: Taken) -> LimitExceeded:
    """The error for a take that was refused: which limit of whom, how large it is, and when to come back.

    Where an amount is above its whole limit, that bucket is the one to name: waiting would not help.
    """
    never = next((level for level in taken.levels if level.bucket.amount > level.bucket.limit), None)
    level = never or taken.levels[taken.refused]
    bucket = level.bucket
    kind = _kind(bucket)
    if never is not None:
        error = LimitExceeded(_never_fits(bucket, kind), kind=kind, retry_after_s=None, too_large=True)
    else:
        error = LimitExceeded(_full(level, kind, taken), kind=kind, retry_after_s=taken.retry_after_s)
    error.levels = list(taken.levels)
    return error


def describe(
    bucket: Bucket,
) -> tuple[Literal["organization", "key"], Literal["requests", "tokens", "concurrent_calls"]]:
    """Whose limit a bucket is, and what it counts."""
    scope: Literal["organization", "key"] = "key" if bucket.name in _KEY_NAMES else "organization"
    if bucket.name in TOKEN_NAMES:
        return scope, "tokens"
    return scope, "requests" if bucket.window_s else "concurrent_calls"


def _kind(bucket: Bucket) -> str:
    if bucket.name in TOKEN_NAMES:
        return "tokens"
    return "requests" if bucket.window_s else "concurrency"


def _limit(bucket: Bucket, kind: str) -> str:
    """The limit in words, such as "the organization's limit of 60 requests per minute"."""
    whose = "this API key's" if bucket.name in _KEY_NAMES else "the organization's"
    unit = {
        "requests": "management requests per minute" if bucket.name == MANAGEMENT else "requests per minute",
        "tokens": "tokens per minute",
        "concurrency": "concurrent calls",
    }[kind]
    return f"{whose} limit of {bucket.limit:,} {unit}"


def _never_fits(bucket: Bucket, kind: str) -> str:
    if kind == "tokens":
        return (
            f"This request can use {bucket.amount:,} tokens (its input and max_tokens), more than "
            f"{_limit(bucket, kind)}, so it never fits. Send less input, set a smaller max_tokens, "
            "or ask for a higher limit."
        )
    return f"Nothing passes {_limit(bucket, kind)}. Ask for a higher one."


def _full(level: Level, kind: str, taken: Taken) -> str:
    limit = _limit(level.bucket, kind)
    if kind == "concurrency":
        return f"{limit[0].upper()}{limit[1:]} is reached; come back when one of them has ended."
    asked = f" ({level.remaining:,} left, {level.bucket.amount:,} needed)" if kind == "tokens" else ""
    seconds = max(1, math.ceil(taken.retry_after_s or 0))
    return f"{limit[0].upper()}{limit[1:]} is reached{asked}; come back in {seconds} s."
