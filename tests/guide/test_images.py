"""Images: a photograph in, the most likely of 1,000 labels out."""

from __future__ import annotations

import base64
import io
from decimal import Decimal

import httpx
import pytest
from PIL import Image
from sklearn.datasets import load_sample_image

from tests.guide.conftest import Tour


@pytest.fixture(scope="module")
def photograph() -> bytes:
    """A Chinese palace, as a JPEG."""
    file = io.BytesIO()
    Image.fromarray(load_sample_image("china.jpg")).save(file, "JPEG")
    return file.getvalue()


def labels(answer: httpx.Response) -> list[str]:
    assert answer.status_code == 200, answer.text
    return [row["label"] for row in answer.json()["predictions"]]


def test_send_the_file_itself(tour: Tour, photograph: bytes) -> None:
    answer = tour.http.post("/v1/images/classify", content=photograph, headers={"content-type": "image/jpeg"})
    assert "palace" in labels(answer)
    assert answer.json()["predictions"][0]["confidence"] > 0.1


def test_send_a_form(tour: Tour, photograph: bytes) -> None:
    answer = tour.http.post(
        "/v1/images/classify", files={"image": ("china.jpg", photograph, "image/jpeg")}, data={"top_k": "3"}
    )
    assert "palace" in labels(answer)
    assert len(labels(answer)) == 3


def test_send_base64_in_json(tour: Tour, photograph: bytes) -> None:
    answer = tour.http.post("/v1/images/classify", json={"image": base64.b64encode(photograph).decode(), "top_k": 2})
    assert "palace" in labels(answer)


def test_each_image_has_its_price(tour: Tour, photograph: bytes) -> None:
    answer = tour.http.post("/v1/images/classify", content=photograph, headers={"content-type": "image/jpeg"})
    assert Decimal(answer.headers["x-cost-usd"]) == Decimal("0.0001")


def test_what_is_no_image_is_refused_with_the_reason(tour: Tour) -> None:
    answer = tour.http.post("/v1/images/classify", content=b"no picture", headers={"content-type": "image/jpeg"})
    assert answer.status_code == 400
    assert answer.json()["error"]["message"]
