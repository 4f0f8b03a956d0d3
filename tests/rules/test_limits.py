"""Limits: which buckets a call draws from, and what a refusal says."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelport.calls import Caller, Limits
from modelport.limits.rules import Buckets, management_buckets, refusal, settled_amounts
from modelport.state.protocol import Bucket, Level, Taken

ALICE = Caller(
    organization_id="org_alice",
    project_id="proj_1",
    key_id="key_1",
    mode="live",
    scopes=frozenset({"inference"}),
    plan_id="paid",
    organization_limits=Limits(600, 200_000, 32),
    key_limits=Limits(60, 20_000, 2),
)
_LIMIT = st.none() | st.integers(0, 1000)
LIMITS = st.builds(Limits, _LIMIT, _LIMIT, _LIMIT)


def test_a_call_takes_a_request_its_tokens_and_a_place_of_organization_and_key() -> None:
    found = [(bucket.name, bucket.limit, bucket.window_s, bucket.amount) for bucket in Buckets(ALICE).of(50)]
    assert found == [
        ("rpm", 600, 60, 1),
        ("tpm", 200_000, 60, 50),
        ("calls", 32, 0, 1),
        ("key-rpm", 60, 60, 1),
        ("key-tpm", 20_000, 60, 50),
        ("key-calls", 2, 0, 1),
    ]


@given(LIMITS, LIMITS)
def test_there_is_a_bucket_exactly_where_there_is_a_limit(organization: Limits, key: Limits) -> None:
    caller = replace(ALICE, organization_limits=organization, key_limits=key)
    set_limits = [
        value
        for limits in (organization, key)
        for value in (limits.requests_per_minute, limits.tokens_per_minute, limits.concurrent_calls)
        if value is not None
    ]
    found = Buckets(caller).of(1)
    assert [bucket.limit for bucket in found] == set_limits
    assert len({bucket.key for bucket in found}) == len(found)
    assert len({bucket.name for bucket in found}) == len(found)


def test_test_keys_and_other_tenants_have_buckets_of_their_own() -> None:
    mallory = replace(ALICE, organization_id="org_mallory", key_id="key_2")
    callers = (ALICE, replace(ALICE, mode="test"), mallory)
    keys = [bucket.key for caller in callers for bucket in Buckets(caller).of(1)]
    keys += [management_buckets(caller, per_minute=5)[0].key for caller in (ALICE, mallory)]
    assert len(set(keys)) == len(keys)


def test_two_keys_of_one_organization_share_its_buckets_and_not_their_own() -> None:
    first, second = (
        {bucket.name: bucket.key for bucket in Buckets(caller).of(1)}
        for caller in (ALICE, replace(ALICE, key_id="key_2"))
    )
    assert {name for name in first if first[name] == second[name]} == {"rpm", "tpm", "calls"}


def taken(*levels: Level, refused: int, retry_after_s: float | None) -> Taken:
    return Taken("call", list(levels), refused, retry_after_s, 0, 1)


def test_settling_keeps_the_request_corrects_the_tokens_and_frees_the_place() -> None:
    levels = [Level(bucket, 0, 0.0) for bucket in Buckets(ALICE).of(500)]
    assert settled_amounts(levels, tokens=123) == [1, 123, 0, 1, 123, 0]


RPM, TPM, CALLS, KEY_RPM, KEY_TPM, KEY_CALLS = Buckets(ALICE).of(50)


@pytest.mark.parametrize(
    ("bucket", "kind", "words"),
    [
        (RPM, "requests", ["organization's", "600 requests per minute", "12 s"]),
        (TPM, "tokens", ["organization's", "200,000 tokens per minute", "50 needed", "12 s"]),
        (CALLS, "concurrency", ["organization's", "32 concurrent calls"]),
        (KEY_RPM, "requests", ["API key's", "60 requests per minute"]),
        (KEY_TPM, "tokens", ["API key's", "20,000 tokens per minute"]),
        (KEY_CALLS, "concurrency", ["API key's", "2 concurrent calls"]),
        (management_buckets(ALICE, per_minute=7)[0], "requests", ["API key's", "7 management requests per minute"]),
    ],
)
def test_a_refusal_says_which_limit_of_whom_and_when_to_come_back(bucket: Bucket, kind: str, words: list[str]) -> None:
    error = refusal(taken(Level(bucket, 0, 60.0), refused=0, retry_after_s=11.2))
    assert error.type == kind
    assert error.code == "rate_limit_exceeded"
    assert error.retry_after_s == 11.2
    assert error.should_retry is None
    assert len(error.levels) == 1
    for word in words:
        assert word in error.message


def test_what_never_fits_says_so_and_is_not_to_be_retried() -> None:
    """Named is the limit that it never fits, even when another one refused first."""
    huge = KEY_TPM._replace(amount=30_000)
    error = refusal(taken(Level(RPM, 0, 60.0), Level(huge, 20_000, 0.0), refused=0, retry_after_s=None))
    assert error.type == "tokens"
    assert error.should_retry is False
    assert error.retry_after_s is None
    for word in ("30,000 tokens", "API key's", "20,000 tokens per minute", "max_tokens"):
        assert word in error.message


def test_a_limit_of_nothing_lets_nothing_pass() -> None:
    closed = RPM._replace(limit=0)
    error = refusal(taken(Level(closed, 0, 0.0), refused=0, retry_after_s=None))
    assert error.should_retry is False
    assert "0 requests per minute" in error.message
