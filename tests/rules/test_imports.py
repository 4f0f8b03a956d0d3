"""Folders in another server's layout: what is read of them, and that nothing leads out of them."""

from __future__ import annotations

from pathlib import Path

import pytest

from modelport.catalog.imports import SourceError, read_folder
from modelport.catalog.imports.prototext import parse

CONFIG = """
# A model repository's entry.
name: "flower"
platform: "onnxruntime_onnx"
max_batch_size: 16
input [
  { name: "X" data_type: TYPE_FP32 dims: [ 4 ] }
]
output [ { name: 'probabilities', data_type: TYPE_FP32; dims: 3 } ]
instance_group [ { count: 2 kind: KIND_CPU }, { count: 4 kind: KIND_GPU } ]
parameters { key: "note" value: { string_value: "a \\"quoted\\" word" } }
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Versions 2 and 10, no configuration yet."""
    root = tmp_path / "flower"
    for version in ("2", "10"):
        (root / version).mkdir(parents=True)
        (root / version / "model.onnx").write_bytes(b"onnx")
    return root


def test_versions_come_by_number_with_what_the_configuration_says(folder: Path) -> None:
    (folder / "config.pbtxt").write_text(CONFIG)
    found = read_folder(folder)
    assert [(one.model, one.version, one.kind) for one in found] == [
        ("flower", "2", "tabular"),
        ("flower", "10", "tabular"),
    ]
    assert found[0].options == {"max_batch": 16, "slots": 2}
    assert found[1].path == folder / "10" / "model.onnx"


def test_without_a_configuration_the_folder_says_the_name_and_the_operator_the_kind(folder: Path) -> None:
    assert [(one.model, one.kind, one.options) for one in read_folder(folder)] == [("flower", "", {})] * 2


@pytest.mark.parametrize(
    ("dims", "batch", "kind"),
    [
        ("[ 3, 224, 224 ]", 8, "image"),
        ("[ -1, 3, 224, 224 ]", 0, "image"),
        ("[ -1, 4 ]", 0, "tabular"),
        ("[ 1, 2 ]", 8, ""),
    ],
)
def test_the_inputs_tell_the_kind(folder: Path, dims: str, batch: int, kind: str) -> None:
    (folder / "config.pbtxt").write_text(f'max_batch_size: {batch} input {{ name: "x" dims: {dims} }}')
    assert read_folder(folder)[0].kind == kind


@pytest.mark.parametrize(
    ("config", "told"),
    [
        ('platform: "tensorflow_savedmodel"', "onnxruntime"),
        ('default_model_filename: "../../secret.onnx"', "plain name"),
        ('default_model_filename: "other.onnx"', "there is no file"),
        ('name: "x', "line 1"),
        ("name: {", "ends before"),
        ("name: [", "a value belongs"),
        ("} name", "a field's name belongs"),
        ("a " * 10 + "{" * 200, "a field's name belongs"),
        ("a {" * 200, "nested deeper"),
        ("\x00\x01", "line 1"),
        ("#" + "x" * 1_000_001, "larger than"),
    ],
)
def test_a_configuration_that_cannot_be_used_is_told(folder: Path, config: str, told: str) -> None:
    (folder / "config.pbtxt").write_text(config)
    with pytest.raises(SourceError, match=told):
        read_folder(folder)


def test_links_that_lead_out_are_refused(folder: Path, tmp_path: Path) -> None:
    """A file, a version and the configuration itself; one that stays inside is fine."""
    secret = tmp_path / "secret.onnx"
    secret.write_bytes(b"secret")
    model = folder / "2" / "model.onnx"
    model.unlink()
    model.symlink_to(secret)
    with pytest.raises(SourceError, match="leads out"):
        read_folder(folder)
    model.unlink()
    model.symlink_to(folder / "10" / "model.onnx")
    assert len(read_folder(folder)) == 2
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "model.onnx").write_bytes(b"secret")
    (folder / "3").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(SourceError, match="leads out"):
        read_folder(folder)
    (folder / "3").unlink()
    (folder / "config.pbtxt").symlink_to(secret)
    with pytest.raises(SourceError, match="leads out"):
        read_folder(folder)


def test_an_empty_folder_and_too_many_versions_are_told(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="neither versions"):
        read_folder(tmp_path)
    for number in range(201):
        (tmp_path / str(number)).mkdir()
    with pytest.raises(SourceError, match="201 versions"):
        read_folder(tmp_path)


def test_fields_of_another_type_are_as_if_not_there() -> None:
    message = parse('name: 3 count: "x" list: [1, 2] list: 3 size: 1.5')
    assert (message.text("name"), message.number("count"), message.numbers("list")) == ("", None, [1, 2, 3])
    assert message.number("size") is None
    assert message.messages("nothing") == []
