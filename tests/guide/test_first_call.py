"""The first call: the official SDK, another base URL, a real model on this machine."""

from __future__ import annotations

from tests.guide.conftest import Tour


def test_ask_a_question(tour: Tour) -> None:
    answer = tour.sdk.chat.completions.create(
        model="smollm2-135m-instruct",
        messages=[{"role": "user", "content": "What is the capital of France?"}],
        max_tokens=40,
    )
    assert "Paris" in (answer.choices[0].message.content or "")
    assert answer.usage is not None
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens


def test_complete_a_text(tour: Tour) -> None:
    answer = tour.sdk.completions.create(model="smollm2-135m-instruct", prompt="Once upon a time", max_tokens=8)
    assert answer.choices[0].text


def test_see_what_can_be_called(tour: Tour) -> None:
    models = {model.id for model in tour.sdk.models.list()}
    assert models == {"smollm2-135m-instruct", "all-minilm-l6-v2", "efficientnet-lite0", "iris", "sandbox"}


def test_every_answer_says_what_served_it_and_what_it_cost(tour: Tour) -> None:
    raw = tour.sdk.chat.completions.with_raw_response.create(
        model="sandbox", messages=[{"role": "user", "content": "[[tokens:5]]"}]
    )
    assert raw.headers["x-model-served"] == "sandbox"
    assert raw.headers["x-model-version"] == "1"
    assert raw.headers["x-request-id"].startswith("req_")
    assert float(raw.headers["x-cost-usd"]) > 0


def test_the_key_goes_into_either_header(tour: Tour) -> None:
    for headers in ({"authorization": f"Bearer {tour.key}"}, {"x-api-key": tour.key}):
        status, _, _ = tour.server.request("GET", "/v1/models", headers=headers)
        assert status == 200


def test_without_a_key_the_answer_says_where_it_goes(tour: Tour) -> None:
    status, body = tour.server.get("/v1/models")
    assert status == 401
    assert body["error"]["code"] == "invalid_api_key"
    assert "Authorization" in body["error"]["message"]
