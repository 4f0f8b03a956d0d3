"""Tensors in and out of real models, by their own names: what is accepted and refused, and that rows keep apart."""

from __future__ import annotations

import asyncio
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from modelport.backends.onnx import OnnxBackend
from modelport.calls import Call, ModelKind, Tensor, Usage
from modelport.catalog.prepare.onnx_file import GraphBuilder
from modelport.errors import BadRequest
from tests.contract.local_models import answer, embed, infer, predict, row, running, serving

SETOSA, VIRGINICA = [5.1, 3.5, 1.4, 0.2], [6.7, 3.0, 5.2, 2.3]


def tensor(name: str, array: Any, datatype: str, dtype: str) -> Tensor:
    filled = np.asarray(array, dtype)
    return Tensor(name, datatype, filled.shape, filled.tobytes())


def features(*rows: list[float]) -> Tensor:
    return tensor("features", rows, "FP32", "<f4")


async def outputs(backend: OnnxBackend, call: Call) -> dict[str, Tensor]:
    delta = await answer(backend, call)
    assert delta.whole
    return {one.name: one for one in delta.value}


async def test_tensors_give_what_a_prediction_gives_under_the_models_own_names() -> None:
    async with serving("iris") as backend:
        found = await outputs(backend, infer(features(SETOSA, VIRGINICA)))
        predicted = (await answer(backend, predict(SETOSA, VIRGINICA))).value
        told = backend.info()["tensors"]
    assert told == {
        "inputs": [{"name": "features", "datatype": "FP32", "shape": [-1, 4]}],
        "outputs": [
            {"name": "probabilities", "datatype": "FP32", "shape": [-1, 3]},
            {"name": "index", "datatype": "INT64", "shape": [-1]},
        ],
    }
    assert found["probabilities"].shape == (2, 3)
    chances = np.frombuffer(found["probabilities"].data, "<f4").reshape(2, 3)
    assert chances == pytest.approx(np.array([list(one["probabilities"].values()) for one in predicted]), abs=1e-6)
    assert np.frombuffer(found["index"].data, "<i8").tolist() == [one["index"] for one in predicted]


async def test_only_the_outputs_asked_for_come_back_in_that_order() -> None:
    async with serving("iris") as backend:
        (only,) = (await answer(backend, infer(features(SETOSA), outputs=["index"]))).value
        both = (await answer(backend, infer(features(SETOSA), outputs=["index", "probabilities"]))).value
    assert only.name == "index"
    assert [one.name for one in both] == ["index", "probabilities"]


async def test_data_may_lie_anywhere_in_a_larger_body() -> None:
    """A door hands on a view of the body, wherever the tensor begins in it."""
    content = features(SETOSA)
    body = memoryview(b"header!" + bytes(content.data) + b"tail")
    async with serving("iris") as backend:
        found = await outputs(backend, infer(Tensor("features", "FP32", (1, 4), body[7:23])))
    assert np.frombuffer(found["index"].data, "<i8").tolist() == [0]


async def test_many_callers_at_once_each_get_their_own_rows() -> None:
    rng = np.random.default_rng(7)
    given = [rng.uniform(0.1, 7, (int(count), 4)).astype("<f4") for count in rng.integers(1, 9, 60)]
    async with serving("iris") as backend:
        alone = [await outputs(backend, infer(tensor("features", rows, "FP32", "<f4"))) for rows in given]
        calls = (outputs(backend, infer(tensor("features", rows, "FP32", "<f4"))) for rows in given)
        together = await asyncio.gather(*calls)
    for first, second in zip(alone, together, strict=True):
        assert bytes(first["index"].data) == bytes(second["index"].data)
        assert np.frombuffer(first["probabilities"].data, "<f4") == pytest.approx(
            np.frombuffer(second["probabilities"].data, "<f4"), abs=1e-6
        )


async def test_pictures_are_counted_and_embeddings_are_charged_by_their_tokens() -> None:
    pixels = tensor("image", np.full((2, 224, 224, 3), 127), "UINT8", "u1")
    async with serving("efficientnet-lite0") as backend:
        delta = await answer(backend, infer(pixels))
    assert delta.usage == Usage(images=2)
    ids = tensor("input_ids", [[101, 7592, 102, 0]], "INT64", "<i8")
    mask = tensor("attention_mask", [[1, 1, 1, 0]], "INT64", "<i8")
    async with serving("all-minilm-l6-v2") as backend:
        call = infer(ids, mask)
        reserved = await backend.count_input(call, model="m")
        delta = await answer(backend, call)
        whole = (await answer(backend, predict("hello"))).value[0]
    assert delta.usage == Usage(input_tokens=3)
    assert reserved == 3
    assert np.frombuffer(delta.value[0].data, "<f4") == pytest.approx(np.array(whole), abs=0.02)


REFUSED: list[tuple[list[Tensor], list[str], str]] = [
    ([], [], "'features' is missing"),
    ([Tensor("feature", "FP32", (1, 4), b"")], [], "no input 'feature'; the model has features"),
    ([features(SETOSA), features(SETOSA)], [], "there twice"),
    ([Tensor("features", "FP64", (1, 4), b"\0" * 32)], [], "is FP64, the model takes FP32"),
    ([Tensor("features", "FP32", (4,), b"\0" * 16)], [], r"shape \[4\], the model takes \[-1, 4\]"),
    ([Tensor("features", "FP32", (1, 5), b"\0" * 20)], [], r"shape \[1, 5\], the model takes \[-1, 4\]"),
    ([Tensor("features", "FP32", (-1, 4), b"\0" * 16)], [], r"shape \[-1, 4\]"),
    ([Tensor("features", "FP32", (0, 4), b"")], [], "has no rows"),
    ([Tensor("features", "FP32", (1, 4), b"\0" * 15)], [], r"15 bytes of data, its shape \[1, 4\] takes 16"),
    ([Tensor("features", "FP32", (1, 4), b"\0" * 17)], [], "17 bytes of data"),
    ([Tensor("features", "FP32", (1 << 40, 4), b"\0" * 16)], [], "at most 2048"),
    ([features(SETOSA)], ["labels"], "no output 'labels'; the model has probabilities, index"),
    ([features(SETOSA)], ["index", "index"], "asked for twice"),
]


@pytest.mark.parametrize(("inputs", "wanted", "words"), REFUSED)
async def test_wrong_tensors_are_refused_with_what_was_expected(
    inputs: list[Tensor], wanted: list[str], words: str
) -> None:
    async with serving("iris") as backend:
        with pytest.raises(BadRequest, match=words):
            await answer(backend, infer(*inputs, outputs=wanted))


async def test_no_sequence_is_longer_than_the_model_reads() -> None:
    """Attention takes the square of the length: one caller could take all memory."""
    ids = tensor("input_ids", np.ones((1, 513)), "INT64", "<i8")
    mask = tensor("attention_mask", np.ones((1, 513)), "INT64", "<i8")
    async with serving("all-minilm-l6-v2") as backend:
        with pytest.raises(BadRequest, match="513 in dimension 1; at most 256"):
            await answer(backend, infer(ids, mask))
        with pytest.raises(BadRequest, match="'batch' is 1 in one input and 2"):
            await answer(
                backend,
                infer(
                    tensor("input_ids", np.ones((1, 4)), "INT64", "<i8"),
                    tensor("attention_mask", np.ones((2, 4)), "INT64", "<i8"),
                ),
            )


async def test_anothers_bad_row_breaks_no_batch_mate() -> None:
    """A token that the vocabulary lacks breaks the engine's run, which others share. It is the caller's fault, so that
    nobody can open the model's circuit with it."""

    def tokens(first: int) -> Call:
        mask = tensor("attention_mask", np.ones((1, 3)), "INT64", "<i8")
        return infer(tensor("input_ids", [[first, 7592, 102]], "INT64", "<i8"), mask)

    async with serving("all-minilm-l6-v2", slo_ms=600_000) as backend:
        busy = asyncio.create_task(answer(backend, embed(["word " * 200] * 8)))
        await asyncio.sleep(0)
        calls = [tokens(101), tokens(2_000_000), tokens(101)]
        good, bad, better = await asyncio.gather(*(answer(backend, call) for call in calls), return_exceptions=True)
        await busy
    assert isinstance(bad, BadRequest)
    assert not isinstance(good, BaseException)
    assert not isinstance(better, BaseException)


async def test_a_model_without_common_rows_is_computed_whole(tmp_path: Path) -> None:
    """Where the first dimension is fixed, or isn't the same throughout, calls are never joined."""
    graph = GraphBuilder(opset=21)
    x = graph.input("x", "float32", ["anything", 2])
    graph.node("ReduceSum", x, graph.constant(np.array([0])), name="total", keepdims=0)
    graph.node("ReduceSum", x, graph.constant(np.array([1])), name="sums", keepdims=1)
    graph.output("sums", "float32", ["anything", 1])
    graph.output("total", "float32", [2])
    path = tmp_path / "mine.onnx"
    path.write_bytes(graph.build("mine", metadata={}))
    async with running(path, row(ModelKind.TABULAR, features=["a", "b"], output="value")) as backend:
        calls = [infer(tensor("x", [[k, 1.0], [1.0, k]], "FP32", "<f4"), outputs=["total"]) for k in range(20)]
        found = await asyncio.gather(*(outputs(backend, call) for call in calls))
    totals = [np.frombuffer(one["total"].data, "<f4").tolist() for one in found]
    assert totals == [[k + 1.0, k + 1.0] for k in range(20)]


def texts(*values: bytes) -> bytes:
    return b"".join(struct.pack("<I", len(value)) + value for value in values)


@pytest.mark.parametrize(
    ("shape", "data", "words"),
    [
        ((2,), texts(b"a"), "cut short"),
        ((1,), texts(b"a") + b"\0", "more data than 1"),
        ((1,), struct.pack("<I", 0xFFFFFFFF) + b"a", "cut short"),
        ((1,), texts(b"\xff"), "no UTF-8"),
    ],
)
def test_broken_texts_are_refused(shape: tuple[int, ...], data: bytes, words: str) -> None:
    from modelport.backends.onnx.elements import read_elements

    with pytest.raises(BadRequest, match=words):
        read_elements(Tensor("t", "BYTES", shape, data))


@pytest.mark.parametrize("datatype", ["BOOL", "UINT8", "INT16", "INT64", "FP16", "FP64", "BYTES"])
def test_elements_come_back_as_they_went_in(datatype: str) -> None:
    from modelport.backends.onnx.elements import ITEM_BYTES, read_elements, write_elements

    data = texts("é".encode(), b"", b"b") if datatype == "BYTES" else bytes(3 * ITEM_BYTES[datatype])
    array = read_elements(Tensor("t", datatype, (3, 1), data))
    assert array.shape == (3, 1)
    assert bytes(write_elements(array)) == data


async def test_inputs_of_a_partial_call_fail_one_by_one() -> None:
    cases: list[tuple[str, list[Any]]] = [
        ("iris", [SETOSA, [1.0], VIRGINICA, "x"]),
        ("efficientnet-lite0", [_picture(), "no picture", _picture(), 7]),
        ("all-minilm-l6-v2", ["a longer text", 7, "hello", ""]),
    ]
    for model, inputs in cases:
        async with serving(model) as backend:
            call = predict(*inputs)
            call.partial = True
            value = (await answer(backend, call)).value
            good = (await answer(backend, predict(inputs[0], inputs[2]))).value
            none = predict(inputs[1], inputs[3])
            none.partial = True
            failed = (await answer(backend, none)).value
        assert [isinstance(one, BadRequest) for one in value] == [False, True, False, True], model
        assert [one.param for one in (value[1], value[3])] == ["inputs[1]", "inputs[3]"]
        if model != "all-minilm-l6-v2":
            assert [value[0], value[2]] == good
        assert all(isinstance(one, BadRequest) for one in failed)
        assert len(failed) == 2


def _picture() -> bytes:
    import io

    from PIL import Image

    file = io.BytesIO()
    Image.new("RGB", (64, 64), (200, 30, 30)).save(file, "PNG")
    return file.getvalue()
