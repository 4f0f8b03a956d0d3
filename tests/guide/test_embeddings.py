"""Embeddings: sentences of like meaning have like vectors."""

from __future__ import annotations

import math

from tests.guide.conftest import Tour


def test_find_the_nearest_sentence(tour: Tour) -> None:
    sentences = ["The invoice is due in March.", "You can reset your password on the sign-in page."]
    rows = tour.sdk.embeddings.create(model="all-minilm-l6-v2", input=["I can't log in any more", *sentences]).data
    question, invoice, password = [row.embedding for row in rows]
    assert cosine(question, password) > cosine(question, invoice)


def test_vectors_have_length_one(tour: Tour) -> None:
    (row,) = tour.sdk.embeddings.create(model="all-minilm-l6-v2", input="Hello").data
    assert len(row.embedding) == 384
    assert math.isclose(math.hypot(*row.embedding), 1.0, abs_tol=1e-5)


def cosine(one: list[float], other: list[float]) -> float:
    """The vectors have length one, so the sum of products is all there is to it."""
    return sum(a * b for a, b in zip(one, other, strict=True))
