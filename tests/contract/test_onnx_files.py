"""Which model files are served and which are refused, and what their status says."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from modelport.backends.onnx import build_onnx
from modelport.backends.protocol import Status
from modelport.calls import ModelKind
from modelport.catalog.prepare.onnx_file import GraphBuilder, _message, _text
from modelport.catalog.sources import prepared_dir
from modelport.errors import ModelLoading, Unavailable
from tests.contract.local_models import answer, embed, predict, row, running

IRIS = prepared_dir() / "iris-2.onnx"


def sums(path: Path, *, metadata: dict[str, Any] | None = None, width: int | str = 2) -> Path:
    """A model file of the operator's own: adds up each row, and the row of ones."""
    graph = GraphBuilder(opset=21)
    x = graph.input("x", "float32", ["batch", width])
    graph.node("ReduceSum", x, graph.constant(np.array([1])), name="total", keepdims=1)
    graph.output("total", "float32", ["batch", 1])
    path.write_bytes(graph.build("sums", metadata={"modelport": json.dumps(metadata)} if metadata else {}))
    return path


def of_rows(path: Path, rows: int) -> Path:
    """A model made for a fixed number of rows, as some exporters make them."""
    graph = GraphBuilder(opset=21)
    x = graph.input("x", "float32", [rows, 2])
    graph.node("ReduceSum", x, graph.constant(np.array([1])), name="total", keepdims=1)
    graph.output("total", "float32", [rows, 1])
    path.write_bytes(graph.build("fixed", metadata={}))
    return path


async def refusal(path: Path, kind: ModelKind = ModelKind.TABULAR, **options: Any) -> str:
    async with running(path, row(kind, **options)) as backend:
        health = backend.health()
        assert health.status is Status.FAILED
        assert backend.info() == {}
        with pytest.raises(Unavailable, match="could not be loaded") as refused:
            await answer(backend, embed("a") if kind is ModelKind.EMBEDDING else predict([1.0, 2.0]))
        assert health.detail not in refused.value.message
        return health.detail


async def test_a_model_of_ones_own_needs_one_line(tmp_path: Path) -> None:
    async with running(sums(tmp_path / "mine.onnx"), row(ModelKind.TABULAR)) as backend:
        assert (await answer(backend, predict([1.0, 2.0], {"feature_0": 3, "feature_1": 4}))).value == [
            {"value": 3.0},
            {"value": 7.0},
        ]


async def test_a_model_of_one_row_at_a_time_is_given_one_row_at_a_time(tmp_path: Path) -> None:
    async with running(of_rows(tmp_path / "one.onnx", 1), row(ModelKind.TABULAR)) as backend:
        calls = (answer(backend, predict([number, 1.0], [number, 2.0])) for number in range(8))
        found = [delta.value for delta in await asyncio.gather(*calls)]
    assert found == [[{"value": number + 1.0}, {"value": number + 2.0}] for number in range(8)]
    assert "exactly 4 rows" in await refusal(of_rows(tmp_path / "four.onnx", 4))


async def test_options_of_the_version_win_over_the_models_and_those_over_the_files(tmp_path: Path) -> None:
    path = sums(tmp_path / "mine.onnx", metadata={"features": ["from", "file"]})
    model = row(ModelKind.TABULAR, features=["from", "model"])
    async with running(path, model) as backend:
        assert backend.info()["features"] == ["from", "model"]
    version = model.all_versions()[0].model_copy(update={"options": {"features": ["from", "version"]}})
    backend = build_onnx(model.model_copy(update={"versions": [version], "source": None}), version, path)
    await backend.start()
    await backend.close()


async def test_labels_may_lie_in_a_file(tmp_path: Path) -> None:
    (tmp_path / "labels.txt").write_text("one\ntwo\nthree\n")
    async with running(IRIS, row(ModelKind.TABULAR, labels=str(tmp_path / "labels.txt"))) as backend:
        assert (await answer(backend, predict([5.1, 3.5, 1.4, 0.2]))).value[0]["label"] == "one"


async def test_weights_in_another_file_are_refused(tmp_path: Path) -> None:
    """External data would let a model read any file of this machine; wherever in the graph it hides."""
    content = IRIS.read_bytes()
    location = _message(13, _text(1, "location") + _text(2, "../../etc/passwd"))
    tensor = _text(8, "leak") + location
    hiding_places = {
        "initializer": _message(7, _message(5, tensor)),
        "attribute": _message(7, _message(1, _message(5, _message(5, tensor)))),
        "inner graph": _message(7, _message(1, _message(5, _message(6, _message(5, tensor))))),
        "sparse": _message(7, _message(15, _message(1, tensor))),
        "function": _message(25, _message(7, _message(5, _message(10, tensor)))),
    }
    for name, extra in hiding_places.items():
        path = tmp_path / f"{name}.onnx"
        path.write_bytes(content + extra)
        assert "another file" in await refusal(path), name


async def test_links_out_of_the_folder_are_refused(tmp_path: Path) -> None:
    (tmp_path / "link.onnx").symlink_to(IRIS)
    assert "leads out of its folder" in await refusal(tmp_path / "link.onnx")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "empty"),
        (b"this is no model, only a text", "no ONNX file"),
        (IRIS.read_bytes()[:300], "no ONNX file"),
        (b"\x08\x0a", "no graph"),
        (bytes(range(256)) * 10, "no ONNX file"),
        (_message(7, _text(2, "nothing in it")), "engine can't load"),
        (b"\x3a\x02" * 40_000, "no ONNX file"),
    ],
)
async def test_what_is_no_model_is_refused(tmp_path: Path, content: bytes, words: str) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(content)
    assert words in await refusal(path)


WRONG: list[tuple[str, ModelKind, dict[str, Any], str]] = [
    ("iris-2.onnx", ModelKind.IMAGE, {}, "no batch of pictures"),
    ("iris-2.onnx", ModelKind.EMBEDDING, {}, "input_ids"),
    ("iris-2.onnx", ModelKind.CHAT, {}, "not chat"),
    ("efficientnet-lite0.onnx", ModelKind.TABULAR, {}, "rows of numbers"),
    ("iris-2.onnx", ModelKind.TABULAR, {"labels": ["a"]}, "3 classes"),
    ("iris-2.onnx", ModelKind.TABULAR, {"labels": "/nowhere"}, "/nowhere"),
    ("iris-2.onnx", ModelKind.TABULAR, {"features": ["a"]}, "4 features"),
    ("iris-2.onnx", ModelKind.TABULAR, {"queue": 0}, "queue"),
    ("iris-2.onnx", ModelKind.TABULAR, {"qeue": 7}, "qeue"),
    ("all-minilm-l6-v2.onnx", ModelKind.EMBEDDING, {"tokenizer": "/nowhere"}, "/nowhere"),
    ("all-minilm-l6-v2.onnx", ModelKind.EMBEDDING, {"tokenizer": "{}"}, "tokenizer is not valid"),
    ("none.onnx", ModelKind.TABULAR, {}, "there is no file"),
]


@pytest.mark.parametrize(("name", "kind", "options", "words"), WRONG)
async def test_a_wrong_row_of_configuration_says_what_is_wrong(
    name: str, kind: ModelKind, options: dict[str, Any], words: str
) -> None:
    assert words in await refusal(prepared_dir() / name, kind, **options)


async def test_while_it_loads_callers_are_told_to_come_back() -> None:
    model = row(ModelKind.TABULAR)
    backend = build_onnx(model, model.all_versions()[0], IRIS)
    assert backend.health().status is Status.LOADING
    with pytest.raises(ModelLoading) as told:
        await answer(backend, predict([1.0] * 4))
    assert told.value.retry_after_s
    await backend.start()
    await backend.close()
    await backend.close()
    assert not [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
