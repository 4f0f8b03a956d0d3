"""How the predictions of several models for one input become one. Pure.

What is averaged are numbers and what holds them: rows of probabilities, confidences by label, values, vectors.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import msgspec

_encode = msgspec.json.Encoder(order="sorted").encode


class Said(NamedTuple):
    """What one member predicts, and how much it counts."""

    prediction: Any
    weight: float


class Uncombinable(ValueError):
    """The members' predictions have nothing that could be combined; the message says what they are."""


def mean(said: Sequence[Said], *, top_k: int) -> Any:
    """The weighted mean. Of classes, their mean probabilities, and the label of the largest.

    Raises: Uncombinable.
    """
    first = said[0].prediction
    if _is_ranked(first):
        return _ranked(_by_label(said, _confidences), said)[:top_k]
    if isinstance(first, dict) and "probabilities" in first:
        return _classified(_by_label(said, lambda prediction: prediction["probabilities"]), said)
    return _averaged(said)


def vote(said: Sequence[Said], *, top_k: int) -> Any:
    """What most of the weight says. Equal votes go to what is said with the greater confidence, then to who came first.

    Of classes the votes are those for a label; of anything else, for the whole prediction.
    """
    votes: dict[Any, list[float]] = {}
    chosen: dict[Any, Any] = {}
    for one in said:
        name = _name(one.prediction)
        tally = votes.setdefault(name, [0.0, 0.0])
        tally[0] += one.weight
        tally[1] += one.weight * _confidence(one.prediction)
        chosen.setdefault(name, one.prediction)
    order = sorted(votes, key=lambda name: votes[name], reverse=True)
    best = chosen[order[0]]
    share = votes[order[0]][0] / sum(one.weight for one in said)
    if _is_ranked(best):
        whole = sum(one.weight for one in said)
        rows = [_row_of(chosen[name]) | {"confidence": round(votes[name][0] / whole, 6)} for name in order]
        return rows[:top_k]
    if isinstance(best, dict) and "label" in best:
        told = {name: value for name, value in best.items() if name not in ("probabilities", "confidence")}
        return told | {"confidence": round(share, 6)}
    return best


def _is_ranked(prediction: Any) -> bool:
    """An image's labels, best first."""
    return isinstance(prediction, list) and bool(prediction) and isinstance(prediction[0], dict)


def _row_of(prediction: Any) -> dict[str, Any]:
    return dict(prediction[0])


def _name(prediction: Any) -> Any:
    if _is_ranked(prediction):
        return prediction[0].get("label")
    if isinstance(prediction, dict) and "label" in prediction:
        return prediction["label"]
    return _encode(prediction)


def _confidence(prediction: Any) -> float:
    if _is_ranked(prediction):
        return float(prediction[0].get("confidence", 0.0))
    if isinstance(prediction, dict):
        probabilities = prediction.get("probabilities") or {}
        return float(probabilities.get(prediction.get("label")) or prediction.get("confidence", 0.0))
    return 0.0


def _confidences(prediction: Any) -> dict[str, float]:
    return {row["label"]: row["confidence"] for row in prediction}


def _by_label(said: Sequence[Said], probabilities_of: Any) -> dict[str, float]:
    whole = sum(one.weight for one in said)
    sums: dict[str, float] = {}
    for one in said:
        try:
            for label, probability in probabilities_of(one.prediction).items():
                sums[label] = sums.get(label, 0.0) + one.weight * probability
        except (KeyError, TypeError, AttributeError):
            raise Uncombinable("its members predict classes in different forms") from None
    return {label: total / whole for label, total in sums.items()}


def _indexes(said: Sequence[Said]) -> dict[str, int]:
    """The number of each label, where a member tells it."""
    found: dict[str, int] = {}
    for one in said:
        rows = one.prediction if _is_ranked(one.prediction) else [one.prediction]
        for row in rows:
            if "index" in row:
                found.setdefault(row["label"], row["index"])
    return found


def _ranked(probabilities: dict[str, float], said: Sequence[Said]) -> list[dict[str, Any]]:
    indexes = _indexes(said)
    order = sorted(probabilities, key=lambda label: (-probabilities[label], indexes.get(label, 0)))
    return [
        {"label": label, "confidence": round(probabilities[label], 6), "index": indexes.get(label)} for label in order
    ]


def _classified(probabilities: dict[str, float], said: Sequence[Said]) -> dict[str, Any]:
    label = max(probabilities, key=lambda label: probabilities[label])
    # Members list all labels in the order of their numbers.
    return {"label": label, "index": list(probabilities).index(label), "probabilities": probabilities}


def _averaged(said: Sequence[Said]) -> Any:
    """Numbers, and lists and objects of numbers that have the same shape."""
    first = said[0].prediction
    if isinstance(first, bool) or not isinstance(first, int | float | list | dict):
        raise Uncombinable(f"its members predict {type(first).__name__}, which has no mean")
    if isinstance(first, int | float):
        if any(isinstance(one.prediction, bool) or not isinstance(one.prediction, int | float) for one in said):
            raise Uncombinable("its members predict numbers and other things")
        return sum(one.prediction * one.weight for one in said) / sum(one.weight for one in said)
    if isinstance(first, list):
        if any(not isinstance(one.prediction, list) or len(one.prediction) != len(first) for one in said):
            raise Uncombinable("its members predict lists of different lengths")
        return [_averaged([Said(one.prediction[place], one.weight) for one in said]) for place in range(len(first))]
    if any(not isinstance(one.prediction, dict) or one.prediction.keys() != first.keys() for one in said):
        raise Uncombinable("its members predict objects with different members")
    return {name: _averaged([Said(one.prediction[name], one.weight) for one in said]) for name in first}
