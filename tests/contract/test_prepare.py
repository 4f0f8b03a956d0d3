"""The default models' files: the same bytes everywhere, made without running anything that comes in a file."""

from __future__ import annotations

import collections
import hashlib
import io
import json
import pickle
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from modelport.catalog.defaults import default_models
from modelport.catalog.prepare.__main__ import build_file, pinned_files
from modelport.catalog.prepare.safetensors_file import UnreadableTensors, read_tensors
from modelport.catalog.prepare.torch_file import UnreadableCheckpoint, read_state_dict
from modelport.catalog.sources import Fetcher, prepared_dir, sha256_of


@pytest.mark.parametrize("name", pinned_files())
def test_a_file_made_again_has_the_pinned_bytes(name: str) -> None:
    assert hashlib.sha256(build_file(name)).hexdigest() == pinned_files()[name]


def test_every_default_model_has_a_pinned_file_that_is_here(tmp_path: Path) -> None:
    versions = [version for row in default_models() if row.backend != "sandbox" for version in row.all_versions()]
    assert len(versions) == 5
    for version in versions:
        assert version.sha256
        assert Fetcher(tmp_path).fetch(version.source, sha256=version.sha256).is_file()
    assert not list(tmp_path.iterdir())


def test_preparing_again_changes_nothing_and_says_so() -> None:
    before = {path.name: (path.stat().st_mtime_ns, sha256_of(path)) for path in prepared_dir().iterdir()}
    done = subprocess.run(
        [sys.executable, "-m", "modelport.catalog.prepare"], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.count("is there") == len(pinned_files())
    assert before == {path.name: (path.stat().st_mtime_ns, sha256_of(path)) for path in prepared_dir().iterdir()}


def test_the_models_that_serve_need_neither_scikit_learn_nor_torch() -> None:
    """Importing the platform's parts for local models loads no engine and nothing that only set-up needs."""
    code = (
        "import sys, modelport.backends.onnx, modelport.catalog.sources, modelport.catalog.defaults;"
        "heavy = {'onnxruntime', 'PIL', 'tokenizers', 'numpy', 'sklearn', 'torch'} & set(sys.modules);"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


class _Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return (Path("/tmp/modelport-was-here").touch, ())


def checkpoint(state: Any, *, storages: bytes = b"", keys: list[str] | None = None) -> bytes:
    """A PyTorch checkpoint of the old format around any pickled state."""
    parts = [0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}, state, keys or []]
    return b"".join(pickle.dumps(part, protocol=2) for part in parts) + storages


def test_a_checkpoint_that_names_a_function_is_refused_and_runs_nothing() -> None:
    for state in (_Evil(), {"weight": _Evil()}, eval, subprocess.Popen, np.dtype("f4")):
        with pytest.raises(UnreadableCheckpoint, match="refused"):
            read_state_dict(checkpoint(state))
    assert not Path("/tmp/modelport-was-here").exists()


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"no pickle",
        pickle.dumps(7, protocol=2),
        checkpoint(7),
        checkpoint({}, keys=["0"]),
        checkpoint({}, keys=["0"])[:-3],
    ],
)
def test_what_is_no_checkpoint_is_refused(data: bytes) -> None:
    with pytest.raises(UnreadableCheckpoint):
        read_state_dict(data)


def tensor_checkpoint(*, offset: int, shape: tuple[int, ...], stride: tuple[int, ...], count: int = 6) -> bytes:
    """A checkpoint with one tensor on a storage of six numbers, as PyTorch itself would write it."""

    class Storage:
        pass

    class Rebuilt:
        def __init__(self, storage: Storage) -> None:
            self.storage = storage

    class Writer(pickle._Pickler):  # type: ignore[name-defined,misc]
        def persistent_id(self, value: Any) -> Any:
            return ("storage", _Named("torch", "FloatStorage"), "0", "cpu", 6, None) if value == "S" else None

        def save(self, value: Any, save_persistent_id: bool = True) -> None:
            if isinstance(value, _Named):
                self.write(f"c{value.module}\n{value.name}\n".encode())
            elif isinstance(value, Rebuilt):
                self.save(_Named("torch._utils", "_rebuild_tensor_v2"))
                self.save(("S", offset, shape, stride, False, collections.OrderedDict()))
                self.write(pickle.REDUCE)
            else:
                super().save(value, save_persistent_id)

    out = io.BytesIO()
    for part in (0x1950A86A20F9469CFC6C, 1001, {}):
        out.write(pickle.dumps(part, protocol=2))
    Writer(out, protocol=2).dump({"weight": Rebuilt(Storage())})
    out.write(pickle.dumps(["0"], protocol=2) + struct.pack("<q", count) + np.arange(6, dtype="<f4").tobytes())
    return out.getvalue()


class _Named:
    def __init__(self, module: str, name: str) -> None:
        self.module, self.name = module, name


def test_a_tensor_is_read_with_its_offset_and_strides() -> None:
    state = read_state_dict(tensor_checkpoint(offset=1, shape=(2, 2), stride=(1, 2)))
    assert state["weight"].tolist() == [[1.0, 3.0], [2.0, 4.0]]


@pytest.mark.parametrize(
    ("offset", "shape", "stride"),
    [(0, (7,), (1,)), (5, (2,), (1,)), (0, (2, 2), (1, 5)), (-1, (1,), (1,)), (0, (2,), (-1,))],
)
def test_a_tensor_that_reaches_beyond_its_storage_is_refused(
    offset: int, shape: tuple[int, ...], stride: tuple[int, ...]
) -> None:
    with pytest.raises(UnreadableCheckpoint, match="beyond"):
        read_state_dict(tensor_checkpoint(offset=offset, shape=shape, stride=stride))


def test_a_storage_of_another_size_is_refused() -> None:
    with pytest.raises(UnreadableCheckpoint, match="size"):
        read_state_dict(tensor_checkpoint(offset=0, shape=(6,), stride=(1,), count=7))


def safetensors(header: Any) -> bytes:
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + bytes(8)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xff" * 100,
        safetensors([]),
        safetensors({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 9]}}),
        safetensors({"a": {"dtype": "F32", "shape": [2], "data_offsets": [-8, 0]}}),
        safetensors({"a": {"dtype": "F32", "shape": [3], "data_offsets": [0, 8]}}),
        safetensors({"a": {"dtype": "object", "shape": [2], "data_offsets": [0, 8]}}),
    ],
)
def test_broken_tensor_files_are_refused(data: bytes) -> None:
    with pytest.raises(UnreadableTensors):
        read_tensors(data)


def test_a_tensor_file_is_read() -> None:
    found = read_tensors(safetensors({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}))
    assert found["a"].tolist() == [0.0, 0.0]
