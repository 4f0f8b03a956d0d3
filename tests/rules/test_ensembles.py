"""How predictions become one: means keep what probabilities are, votes count weight, ties have an order."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelport.backends.ensemble.combine import Said, Uncombinable, mean, vote
from modelport.backends.ensemble.options import parse_options


def classes(**probabilities: float) -> dict[str, Any]:
    label = max(probabilities, key=lambda name: probabilities[name])
    return {"label": label, "index": list(probabilities).index(label), "probabilities": probabilities}


def ranked(**confidences: float) -> list[dict[str, Any]]:
    names = list(confidences)
    order = sorted(names, key=lambda name: -confidences[name])
    return [{"label": name, "confidence": confidences[name], "index": names.index(name)} for name in order]


def said(*predictions: Any) -> list[Said]:
    return [Said(prediction, 1.0) for prediction in predictions]


class TestMean:
    def test_probabilities_are_averaged_and_the_label_follows(self) -> None:
        one = mean(said(classes(a=0.6, b=0.4), classes(a=0.1, b=0.9)), top_k=5)
        assert one["label"] == "b"
        assert one["index"] == 1
        assert one["probabilities"] == pytest.approx({"a": 0.35, "b": 0.65})

    def test_weights_count(self) -> None:
        one = mean([Said(classes(a=1.0, b=0.0), 3.0), Said(classes(a=0.0, b=1.0), 1.0)], top_k=5)
        assert one["probabilities"] == pytest.approx({"a": 0.75, "b": 0.25})

    def test_labels_of_pictures_are_ranked_anew(self) -> None:
        rows = mean(said(ranked(cat=0.9, dog=0.1), ranked(cat=0.2, dog=0.8)), top_k=1)
        assert rows == [{"label": "cat", "confidence": 0.55, "index": 0}]

    def test_values_and_vectors_are_averaged_member_by_member(self) -> None:
        assert mean(said({"value": 1.0}, {"value": 2.0}), top_k=5) == {"value": 1.5}
        assert mean(said([1, [2, 3]], [3, [4, 5]]), top_k=5) == [2, [3, 4]]

    @pytest.mark.parametrize("others", [("a", "b"), (1, "b"), ([1], [1, 2]), ({"x": 1}, {"y": 1}), (True, False)])
    def test_what_has_no_mean_is_told(self, others: Any) -> None:
        with pytest.raises(Uncombinable):
            mean(said(*others), top_k=5)

    @given(st.lists(st.tuples(st.floats(0, 1), st.floats(0.1, 10)), min_size=1, max_size=8))
    def test_a_mean_of_probabilities_is_one(self, members: list[tuple[float, float]]) -> None:
        one = mean([Said(classes(a=share, b=1 - share), weight) for share, weight in members], top_k=5)
        assert sum(one["probabilities"].values()) == pytest.approx(1)
        assert min(share for share, _ in members) - 1e-9 <= one["probabilities"]["a"]
        assert one["probabilities"]["a"] <= max(share for share, _ in members) + 1e-9


class TestVote:
    def test_the_most_weight_wins(self) -> None:
        assert vote(said(classes(a=0.9, b=0.1), classes(b=0.6, a=0.4), classes(b=0.6, a=0.4)), top_k=5)["label"] == "b"
        heavy = [Said(classes(a=0.9, b=0.1), 3.0), *said(classes(b=1.0, a=0.0), classes(b=1.0, a=0.0))]
        assert vote(heavy, top_k=5) == {"label": "a", "index": 0, "confidence": 0.6}

    def test_equal_votes_go_to_the_surer_one(self) -> None:
        assert vote(said(classes(a=0.6, b=0.4), classes(a=0.1, b=0.9)), top_k=5)["label"] == "b"

    def test_pictures_are_ranked_by_their_votes(self) -> None:
        rows = vote(said(ranked(cat=0.9), ranked(dog=0.8), ranked(cat=0.7)), top_k=5)
        assert [(row["label"], row["confidence"]) for row in rows] == [("cat", 0.666667), ("dog", 0.333333)]

    def test_anything_can_be_voted_upon(self) -> None:
        assert vote(said({"x": 1}, {"x": 2}, {"x": 2}), top_k=5) == {"x": 2}
        assert vote(said("yes", "no", "no"), top_k=5) == "no"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({}, "members"),
        ({"members": ["a"]}, "length"),
        ({"members": ["a", "b"], "combine": "sum"}, "combine"),
        ({"members": ["a", "b"], "weights": [1.0]}, "1 weights"),
        ({"members": ["a", "b"], "combine": "weighted_mean"}, "needs weights"),
        ({"members": ["a", "b"], "require": 3}, "3 answers"),
    ],
)
def test_wrong_options_are_told(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        parse_options(options)
