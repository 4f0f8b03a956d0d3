"""Limits: requests, tokens and calls at once, for each key; what is left is in every answer."""

from __future__ import annotations

import openai
import pytest
from openai import OpenAI

from tests.guide.conftest import Tour


def limited(tour: Tour, **limits: int) -> OpenAI:
    answer = tour.http.post("/v1/api_keys", json={"name": "limited", "limits": limits})
    return tour.sdk_with(answer.json()["key"])


def call(sdk: OpenAI, text: str = "[[tokens:5]]") -> None:
    sdk.chat.completions.create(model="sandbox", messages=[{"role": "user", "content": text}], max_tokens=5)


def test_requests_per_minute(tour: Tour) -> None:
    sdk = limited(tour, requests_per_minute=2)
    call(sdk)
    call(sdk)
    with pytest.raises(openai.RateLimitError) as refused:
        call(sdk)
    assert refused.value.code == "rate_limit_exceeded"
    assert refused.value.type == "requests"
    assert int(refused.value.response.headers["retry-after"]) > 0


def test_tokens_per_minute_are_reserved_and_given_back(tour: Tour) -> None:
    """A call takes its prompt and the most it may answer; what it did not use is given back when it ends."""
    sdk = limited(tour, tokens_per_minute=100)
    for _ in range(4):
        call(sdk, "[[tokens:1]]")
    with pytest.raises(openai.RateLimitError) as refused:
        sdk.chat.completions.create(
            model="sandbox", messages=[{"role": "user", "content": "[[tokens:1]]"}], max_tokens=90
        )
    assert refused.value.type == "tokens"


def test_calls_at_once(tour: Tour) -> None:
    sdk = limited(tour, concurrent_calls=1)
    slow = "[[tokens:100]] [[per_token:20ms]]"
    with sdk.chat.completions.create(
        model="sandbox", messages=[{"role": "user", "content": slow}], stream=True
    ) as stream:
        next(iter(stream))
        with pytest.raises(openai.RateLimitError) as refused:
            call(sdk)
    assert refused.value.type == "concurrency"


def test_every_answer_says_what_is_left(tour: Tour) -> None:
    sdk = limited(tour, requests_per_minute=10, tokens_per_minute=1000)
    raw = sdk.chat.completions.with_raw_response.create(
        model="sandbox", messages=[{"role": "user", "content": "[[tokens:5]]"}], max_tokens=5
    )
    assert raw.headers["x-ratelimit-limit-requests"] == "10"
    assert raw.headers["x-ratelimit-remaining-requests"] == "9"
    assert int(raw.headers["x-ratelimit-remaining-tokens"]) < 1000
    assert "q=10;w=60" in raw.headers["ratelimit-policy"]


def test_a_call_larger_than_the_limit_is_not_to_be_retried(tour: Tour) -> None:
    sdk = limited(tour, tokens_per_minute=10)
    with pytest.raises(openai.RateLimitError) as refused:
        sdk.chat.completions.create(model="sandbox", messages=[{"role": "user", "content": "hi"}], max_tokens=500)
    assert refused.value.response.headers["x-should-retry"] == "false"
