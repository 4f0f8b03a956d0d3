"""What is left of the limits, in the four styles that clients read. Pure, and on the hot path.

Sources: draft-ietf-httpapi-ratelimit-headers-11 (RateLimit, RateLimit-Policy; RFC 9651 for their syntax); OpenAI API
reference (x-ratelimit-*, whose reset is a duration as Go prints it); Claude API reference (anthropic-ratelimit-*,
whose reset is a time of RFC 3339); the X-RateLimit-* fields as GitHub has them.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from functools import lru_cache
from math import ceil
from typing import Literal

from modelport.limits.rules import TOKEN_NAMES
from modelport.state.protocol import Level

Style = Literal["openai", "anthropic", "x"]
_Headers = list[tuple[bytes, bytes]]


def limit_headers(levels: Sequence[Level], *, style: Style, now_us: int) -> _Headers:
    """`RateLimit-Policy` and `RateLimit` for every limit, and the single-valued fields of `style`.

    Where an organization's and a key's limit are of one kind, the single-valued fields tell the one with less left.
    `now_us` is the wall clock in microseconds. Empty when there are no levels.
    """
    if not levels:
        return []
    parts = []
    requests: Level | None = None
    tokens: Level | None = None
    for level in levels:
        bucket = level.bucket
        name = bucket.name
        if bucket.window_s:
            parts.append(f'"{name}";r={level.remaining};t={ceil(level.reset_s)}')
            if name in TOKEN_NAMES:
                if tokens is None or level.remaining < tokens.remaining:
                    tokens = level
            elif requests is None or level.remaining < requests.remaining:
                requests = level
        else:
            parts.append(f'"{name}";r={level.remaining}')
    headers = [
        (b"ratelimit-policy", _policies(*[level.bucket[1:4] for level in levels])),
        (b"ratelimit", ", ".join(parts).encode()),
    ]
    if style == "openai":
        if requests is not None:
            headers += _openai(requests, _REQUESTS)
        if tokens is not None:
            headers += _openai(tokens, _TOKENS)
    elif style == "anthropic":
        headers += _anthropic(requests, tokens, now_us)
    else:
        told = requests or tokens
        if told is not None:
            headers.append((b"x-ratelimit-limit", b"%d" % told.bucket.limit))
            headers.append((b"x-ratelimit-remaining", b"%d" % told.remaining))
            headers.append((b"x-ratelimit-reset", b"%d" % ceil(now_us / 1_000_000 + told.reset_s)))
    return headers


def go_duration(seconds: float) -> str:
    """Seconds as Go prints a duration, to the millisecond: `120ms`, `12s`, `1.5s`, `6m0s`, `1h0m0s`."""
    return _go_millis(ceil(seconds * 1000))


# A window that was just used is free again in a minute, give or take a sixtieth: few values in steady state.
@lru_cache(maxsize=4096)
def _go_millis(millis: int) -> str:
    if millis < 1000:
        return f"{millis}ms" if millis else "0s"
    minutes, millis = divmod(millis, 60_000)
    whole, rest = divmod(millis, 1000)
    text = f"{whole}.{rest:03d}".rstrip("0") + "s" if rest else f"{whole}s"
    if not minutes:
        return text
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h{minutes}m{text}" if hours else f"{minutes}m{text}"


_REQUESTS = (b"x-ratelimit-limit-requests", b"x-ratelimit-remaining-requests", b"x-ratelimit-reset-requests")
_TOKENS = (b"x-ratelimit-limit-tokens", b"x-ratelimit-remaining-tokens", b"x-ratelimit-reset-tokens")


def _openai(level: Level, names: tuple[bytes, bytes, bytes]) -> _Headers:
    limit, remaining, reset = names
    return [
        (limit, b"%d" % level.bucket.limit),
        (remaining, b"%d" % level.remaining),
        (reset, go_duration(level.reset_s).encode()),
    ]


_ANTHROPIC = {
    kind: tuple(f"anthropic-ratelimit-{kind}-{what}".encode() for what in ("limit", "remaining", "reset"))
    for kind in ("requests", "tokens", "input-tokens", "output-tokens")
}
ANTHROPIC_NAMES = tuple(name for names in _ANTHROPIC.values() for name in names)


def _anthropic(requests: Level | None, tokens: Level | None, now_us: int) -> _Headers:
    """One limit counts all tokens here, so that what is left of it is what is left of either kind."""
    headers: _Headers = []
    for kind, (limit, remaining, reset) in _ANTHROPIC.items():
        level = requests if kind == "requests" else tokens
        if level is not None:
            free = datetime.fromtimestamp(ceil(now_us / 1_000_000 + level.reset_s), UTC)
            headers.append((limit, b"%d" % level.bucket.limit))
            headers.append((remaining, b"%d" % level.remaining))
            headers.append((reset, free.strftime("%Y-%m-%dT%H:%M:%SZ").encode()))
    return headers


# Limits come from a few plans and overrides; what is dropped is only written again.
@lru_cache(maxsize=4096)
def _policies(*limits: tuple[str, int, int]) -> bytes:
    """The policy of each limit: a name, the most there is, and the window in seconds."""
    return ", ".join(_policy(*limit) for limit in limits).encode()


def _policy(name: str, limit: int, window_s: int) -> str:
    if not window_s:
        return f'"{name}";q={limit};qu="concurrent-requests"'
    unit = ';qu="tokens"' if name in TOKEN_NAMES else ""
    return f'"{name}";q={limit};w={window_s}{unit}'
