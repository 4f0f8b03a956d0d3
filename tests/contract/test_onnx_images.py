"""The image classifier, with the real model."""

from __future__ import annotations

import base64

import numpy as np
import pytest
from PIL import Image

from modelport.calls import Usage
from modelport.catalog.sources import prepared_dir
from modelport.errors import BadRequest
from tests.contract.local_models import answer, embed, predict, sample, serving

# ImageNet's own names for what is in the picture.
PHOTOGRAPHS = [
    ("sklearn", "datasets/images/china.jpg", {"palace", "monastery"}),
    ("sklearn", "datasets/images/flower.jpg", {"daisy"}),
    ("skimage", "data/chelsea.png", {"tabby", "tiger cat", "Egyptian cat"}),
    ("skimage", "data/coffee.png", {"espresso", "cup"}),
    ("skimage", "data/camera.png", {"tripod"}),
    ("skimage", "data/rocket.jpg", {"missile", "projectile"}),
]


@pytest.mark.parametrize(("package", "path", "right"), PHOTOGRAPHS)
async def test_photographs_get_the_right_label_in_the_top_three(package: str, path: str, right: set[str]) -> None:
    data = sample(package, path).read_bytes()
    async with serving("efficientnet-lite0") as backend:
        delta = await answer(backend, predict(data, top_k=3))
    (ranked,) = delta.value
    assert {row["label"] for row in ranked} & right
    assert len(ranked) == 3
    assert delta.whole
    assert delta.usage == Usage(images=1)


async def test_the_answer_is_ranked_and_is_the_same_however_the_picture_is_sent() -> None:
    data = sample("sklearn", "datasets/images/china.jpg").read_bytes()
    text = base64.b64encode(data).decode()
    async with serving("efficientnet-lite0") as backend:
        delta = await answer(backend, predict(data, text, f"data:image/jpeg;base64,{text}", {"image": text}))
        assert backend.info()["num_labels"] == 1000
    first = delta.value[0]
    assert delta.value == [first] * 4
    assert delta.usage is not None
    assert delta.usage.images == 4
    assert len(first) == 5
    confidences = [row["confidence"] for row in first]
    assert confidences == sorted(confidences, reverse=True)
    assert first[0].keys() == {"label", "confidence", "index"}


@pytest.mark.parametrize("top_k", [0, 1001, "3", True, 2.0])
async def test_a_top_k_that_makes_no_sense_is_refused(top_k: object) -> None:
    async with serving("efficientnet-lite0") as backend:
        with pytest.raises(BadRequest, match="1 to 1000") as refused:
            await answer(backend, predict(b"", top_k=top_k))
    assert refused.value.param == "options.top_k"


async def test_what_the_model_can_not_do_is_refused() -> None:
    """An unknown option would do nothing, silently; another operation has no answer."""
    async with serving("efficientnet-lite0") as backend:
        with pytest.raises(BadRequest, match="top_k"):
            await answer(backend, predict(b"", topk=3))
        with pytest.raises(BadRequest, match="kind is image"):
            await answer(backend, embed("hello"))
        with pytest.raises(BadRequest, match="at most 64"):
            await answer(backend, predict(*[b""] * 65))


async def test_the_second_picture_is_named_when_it_is_the_broken_one() -> None:
    good = sample("skimage", "data/coffee.png").read_bytes()
    async with serving("efficientnet-lite0") as backend:
        with pytest.raises(BadRequest) as refused:
            await answer(backend, predict(good, good[:5000]))
    assert refused.value.param == "inputs[1]"


def test_the_graph_is_equal_to_the_network_computed_by_hand() -> None:
    """The converted file against a double-precision computation from the original weights, without any folding."""
    from modelport.backends.onnx.engine import open_engine
    from tests.contract.efficientnet import probabilities

    engine = open_engine(prepared_dir() / "efficientnet-lite0.onnx", threads=None)
    with Image.open(sample("skimage", "data/chelsea.png")) as image:
        pixels = np.asarray(image.convert("RGB").resize((224, 224)))
    (found,) = engine.run(["probabilities"], {"image": pixels[None]})
    assert np.abs(found[0] - probabilities(pixels)).max() < 1e-6
