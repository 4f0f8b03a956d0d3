"""API keys: one for each purpose, with no more rights than it needs, and gone at once when revoked."""

from __future__ import annotations

from typing import Any

import openai
import pytest
from openai import OpenAI

from tests.guide.conftest import Tour


def create(tour: Tour, **options: Any) -> dict[str, Any]:
    answer = tour.http.post("/v1/api_keys", json={"name": "tour", **options})
    assert answer.status_code == 201, answer.text
    created: dict[str, Any] = answer.json()
    return created


def call(sdk: OpenAI, model: str = "sandbox") -> str | None:
    answer = sdk.chat.completions.create(model=model, messages=[{"role": "user", "content": "[[echo]] hello"}])
    return answer.choices[0].message.content


def test_create_a_key_and_use_it(tour: Tour) -> None:
    created = create(tour, scopes=["inference"])
    assert created["key"].startswith("mp_live_")
    assert call(tour.sdk_with(created["key"])) == "hello"


def test_a_key_is_shown_once(tour: Tour) -> None:
    created = create(tour)
    shown = tour.http.get(f"/v1/api_keys/{created['id']}").json()
    assert "key" not in shown
    assert shown["last4"] == created["key"][-4:]


def test_a_key_does_what_its_scopes_allow(tour: Tour) -> None:
    reader = tour.sdk_with(create(tour, scopes=["models:read"])["key"])
    assert list(reader.models.list())
    with pytest.raises(openai.PermissionDeniedError, match="inference"):
        call(reader)


def test_a_key_for_one_model(tour: Tour) -> None:
    sdk = tour.sdk_with(create(tour, models=["sandbox"])["key"])
    assert call(sdk) == "hello"
    with pytest.raises(openai.NotFoundError):
        call(sdk, "smollm2-135m-instruct")


def test_a_key_can_expire(tour: Tour) -> None:
    assert create(tour, expires_at="2099-12-31T00:00:00Z")["expires_at"] == "2099-12-31T00:00:00Z"
    refused = tour.http.post("/v1/api_keys", json={"name": "late", "expires_at": "2001-01-01T00:00:00Z"})
    assert refused.status_code in (400, 422)


def test_a_key_from_certain_addresses_only(tour: Tour) -> None:
    sdk = tour.sdk_with(create(tour, allowed_ips=["203.0.113.0/24"])["key"])
    with pytest.raises(openai.PermissionDeniedError, match="address"):
        call(sdk)


def test_a_revoked_key_is_refused_at_its_next_call(tour: Tour) -> None:
    created = create(tour)
    sdk = tour.sdk_with(created["key"])
    assert call(sdk) == "hello"
    assert tour.http.delete(f"/v1/api_keys/{created['id']}").json()["revoked_at"]
    with pytest.raises(openai.AuthenticationError, match="revoked"):
        call(sdk)


def test_a_test_key_costs_nothing(tour: Tour) -> None:
    sdk = tour.sdk_with(create(tour, mode="test")["key"])
    raw = sdk.chat.completions.with_raw_response.create(
        model="sandbox", messages=[{"role": "user", "content": "[[tokens:5]]"}]
    )
    assert float(raw.headers["x-cost-usd"]) == 0
