"""Tabular data with the real iris model in both versions."""

from __future__ import annotations

import math
from typing import Any

import pytest

from modelport.errors import BadRequest
from tests.contract.local_models import answer, predict, serving

SETOSA = [5.1, 3.5, 1.4, 0.2]
NAMES = ["sepal_length_cm", "sepal_width_cm", "petal_length_cm", "petal_width_cm"]


@pytest.mark.parametrize("version", ["1", "2"])
async def test_a_flower_is_recognised_from_a_list_or_from_names(version: str) -> None:
    async with serving("iris", version=version) as backend:
        delta = await answer(backend, predict(SETOSA, dict(zip(NAMES, SETOSA, strict=True))))
        info = backend.info()
    first, second = delta.value
    assert first == second
    assert first["label"] == "setosa"
    assert first["index"] == 0
    assert list(first["probabilities"]) == ["setosa", "versicolor", "virginica"]
    assert sum(first["probabilities"].values()) == pytest.approx(1, abs=1e-5)
    assert info["num_labels"] == 3
    assert info["features"] == NAMES


async def test_the_second_version_is_another_and_a_better_model() -> None:
    from sklearn.datasets import load_iris

    flowers, species = load_iris(return_X_y=True)
    losses = []
    for version in ("1", "2"):
        async with serving("iris", version=version) as backend:
            rows = (await answer(backend, predict(*flowers.tolist()))).value
        chances = [list(row["probabilities"].values())[kind] for row, kind in zip(rows, species, strict=True)]
        losses.append(-sum(math.log(chance) for chance in chances) / len(chances))
    assert losses[1] < losses[0] / 2


REFUSED: list[tuple[Any, str]] = [
    ([1.0, 2.0], "2 values"),
    ([1.0, 2.0, 3.0, math.nan], "petal_width_cm is not a finite number"),
    ([1.0, 2.0, 3.0, math.inf], "petal_width_cm is not a finite number"),
    ([1.0, 2.0, 1e39, 4.0], "petal_length_cm is not a finite number"),
    ([1.0, "2", 3.0, 4.0], "sepal_width_cm is a string"),
    ([True, 2.0, 3.0, 4.0], "sepal_length_cm is a boolean"),
    ([1.0, None, 3.0, 4.0], "sepal_width_cm is null"),
    ([[1.0], 2.0, 3.0, 4.0], "sepal_length_cm is a list"),
    ({"sepal_length_cm": 1}, "sepal_width_cm, petal_length_cm, petal_width_cm is missing"),
    ({**dict.fromkeys(NAMES, 1.0), "colour": 2}, "'colour' is unknown"),
    ("5.1,3.5,1.4,0.2", "it is a string"),
    (7, "it is a number"),
]


@pytest.mark.parametrize(("wrong", "words"), REFUSED)
async def test_wrong_rows_are_refused_with_their_place_and_the_names_expected(wrong: Any, words: str) -> None:
    async with serving("iris") as backend:
        with pytest.raises(BadRequest) as refused:
            await answer(backend, predict(SETOSA, wrong))
    assert refused.value.param == "inputs[1]"
    assert words in refused.value.message
    assert "sepal_length_cm" in refused.value.message


async def test_too_many_rows_and_unknown_options_are_refused() -> None:
    async with serving("iris", max_inputs=2) as backend:
        with pytest.raises(BadRequest, match="at most 2"):
            await answer(backend, predict(SETOSA, SETOSA, SETOSA))
        with pytest.raises(BadRequest, match="no option 'threshold'"):
            await answer(backend, predict(SETOSA, threshold=0.5))
