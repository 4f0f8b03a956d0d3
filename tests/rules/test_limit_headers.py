"""The limits in an answer's headers, as four kinds of clients read them."""

from __future__ import annotations

import re
from decimal import Decimal
from math import ceil
from typing import Any

import http_sf
from hypothesis import given
from hypothesis import strategies as st

from modelport.api.limit_headers import go_duration, limit_headers
from modelport.state.protocol import Bucket, Level

NOW_US = 1_767_225_600_000_000
_GO_UNITS_S = {"h": 3600, "m": 60, "s": 1, "ms": Decimal("0.001")}


def level(name: str, limit: int, remaining: int, reset_s: float = 12.0, *, window_s: int = 60) -> Level:
    return Level(Bucket(f"live:org:{name}", name, limit, window_s, 1), remaining, reset_s)


RPM = level("rpm", 600, 598)
TPM = level("tpm", 100_000, 87_231)
CALLS = level("calls", 32, 31, window_s=0)
LEVELS = st.lists(
    st.builds(
        lambda name, limit, left, reset_s: level(
            name, limit, min(limit, left), reset_s, window_s=0 if name.endswith("calls") else 60
        ),
        st.sampled_from(["rpm", "tpm", "calls", "key-rpm", "key-tpm", "key-calls", "management"]),
        st.integers(0, 10**9),
        st.integers(0, 10**9),
        st.floats(0, 61),
    ),
    min_size=1,
    max_size=6,
    unique_by=lambda level: level.bucket.name,
)


def headers(levels: list[Level], style: str = "openai") -> dict[str, str]:
    found = limit_headers(levels, style=style, now_us=NOW_US)  # type: ignore[arg-type]
    names = [name for name, _ in found]
    assert len(names) == len(set(names))
    return {name.decode(): value.decode() for name, value in found}


def parsed(value: str) -> list[tuple[str, dict[str, Any]]]:
    items = http_sf.parse(value.encode(), tltype="list")
    return [(str(item), dict(params)) for item, params in items]


def test_the_ietf_fields_are_as_the_draft_has_them() -> None:
    found = headers([RPM, TPM, CALLS])
    assert found["ratelimit-policy"] == (
        '"rpm";q=600;w=60, "tpm";q=100000;w=60;qu="tokens", "calls";q=32;qu="concurrent-requests"'
    )
    assert found["ratelimit"] == '"rpm";r=598;t=12, "tpm";r=87231;t=12, "calls";r=31'


def test_openai_clients_read_requests_and_tokens() -> None:
    found = headers([RPM, level("tpm", 100_000, 87_231, 361.5), CALLS])
    assert {name: value for name, value in found.items() if name.startswith("x-")} == {
        "x-ratelimit-limit-requests": "600",
        "x-ratelimit-remaining-requests": "598",
        "x-ratelimit-reset-requests": "12s",
        "x-ratelimit-limit-tokens": "100000",
        "x-ratelimit-remaining-tokens": "87231",
        "x-ratelimit-reset-tokens": "6m1.5s",
    }


def test_anthropics_clients_read_every_kind_and_the_time_of_day() -> None:
    """One limit counts all tokens, so that it is told for the input and the output as well."""
    found = headers([RPM, TPM, CALLS], style="anthropic")
    told = {name.removeprefix("anthropic-ratelimit-"): value for name, value in found.items() if "anthropic" in name}
    assert told == {
        "requests-limit": "600",
        "requests-remaining": "598",
        "requests-reset": "2026-01-01T00:00:12Z",
        **{f"{kind}tokens-limit": "100000" for kind in ("", "input-", "output-")},
        **{f"{kind}tokens-remaining": "87231" for kind in ("", "input-", "output-")},
        **{f"{kind}tokens-reset": "2026-01-01T00:00:12Z" for kind in ("", "input-", "output-")},
    }
    assert not any(name.startswith("x-") for name in found)


def test_other_clients_read_the_requests_and_a_unix_time() -> None:
    found = headers([level("management", 600, 7, 1.2)], style="x")
    assert found["x-ratelimit-limit"] == "600"
    assert found["x-ratelimit-remaining"] == "7"
    assert found["x-ratelimit-reset"] == str(NOW_US // 1_000_000 + 2)


def test_of_key_and_organization_the_one_with_less_left_is_told() -> None:
    levels = [RPM, TPM, level("key-rpm", 60, 3), level("key-tpm", 10**6, 900_000)]
    openai, x = headers(levels), headers(levels, style="x")
    assert (openai["x-ratelimit-limit-requests"], openai["x-ratelimit-remaining-requests"]) == ("60", "3")
    assert (openai["x-ratelimit-limit-tokens"], openai["x-ratelimit-remaining-tokens"]) == ("100000", "87231")
    assert (x["x-ratelimit-limit"], x["x-ratelimit-remaining"]) == ("60", "3")


def test_without_limits_there_is_nothing_to_say() -> None:
    assert limit_headers([], style="x", now_us=NOW_US) == []
    assert set(headers([CALLS])) == {"ratelimit-policy", "ratelimit"}


@given(LEVELS, st.sampled_from(["openai", "anthropic", "x"]))
def test_every_field_parses_and_says_what_the_levels_say(levels: list[Level], style: str) -> None:
    found = headers(levels, style)
    policies, limits = parsed(found["ratelimit-policy"]), parsed(found["ratelimit"])
    assert [name for name, _ in policies] == [name for name, _ in limits] == [item.bucket.name for item in levels]
    for item, (_, policy), (_, limit) in zip(levels, policies, limits, strict=True):
        assert policy["q"] == item.bucket.limit
        assert policy.get("w", 0) == item.bucket.window_s
        assert limit["r"] == item.remaining
        if item.bucket.window_s:
            assert limit["t"] == ceil(item.reset_s)
    requests = [i for i in levels if i.bucket.window_s and not i.bucket.name.endswith("tpm")]
    told = {
        "openai": "x-ratelimit-remaining-requests",
        "anthropic": "anthropic-ratelimit-requests-remaining",
        "x": "x-ratelimit-remaining",
    }[style]
    if requests:
        assert found[told] == str(min(item.remaining for item in requests))


@given(st.floats(0, 10**6))
def test_a_duration_reads_back_as_the_milliseconds_it_was(seconds: float) -> None:
    text = go_duration(seconds)
    pieces = re.findall(r"(\d+(?:\.\d+)?)(ms|h|m|s)", text)
    assert "".join(number + unit for number, unit in pieces) == text
    total = sum(Decimal(number) * _GO_UNITS_S[unit] for number, unit in pieces)
    assert total * 1000 == ceil(seconds * 1000)


def test_durations_are_written_as_go_writes_them() -> None:
    written = [go_duration(seconds) for seconds in (0, 0.12, 1, 12, 1.5, 59.9999, 60, 360, 3600, 3725.25)]
    assert written == ["0s", "120ms", "1s", "12s", "1.5s", "1m0s", "1m0s", "6m0s", "1h0m0s", "1h2m5.25s"]
