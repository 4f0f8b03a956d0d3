"""A folder in another server's layout: what versions of which model lie in it.

Nothing in a folder is run, and nothing outside of it is read: a link that leads out, a name with `..` and a file of
another kind are refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from modelport.catalog.download import SourceError
from modelport.catalog.imports.prototext import Message, parse

_CONFIG = "config.pbtxt"
_MLFLOW = "MLmodel"
# What people write by hand is some kilobytes.
_MAX_CONFIG_BYTES = 1_000_000
_MAX_VERSIONS = 200
_PLATFORMS = ("", "onnxruntime_onnx", "onnxruntime")


@dataclass(frozen=True, slots=True)
class Found:
    """One version that lies in a folder; what is empty is for the operator, or the server, to say."""

    model: str
    version: str
    path: Path
    kind: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)
    description: str = ""


def read_folder(folder: Path) -> list[Found]:
    """The versions in a folder of Triton's layout (`1/model.onnx`, perhaps `config.pbtxt`), by number.

    Raises: SourceError, which says what the folder lacks.
    """
    if (folder / _MLFLOW).exists():
        raise SourceError(
            "it is in MLflow's layout, which is not read yet: add the .onnx file that lies in it by its own path"
        )
    config = _read_config(folder)
    platform = config.text("platform") or config.text("backend")
    if platform not in _PLATFORMS:
        raise SourceError(f"its platform is {platform!r}; of Triton's, models of onnxruntime can be served")
    name = _plain(config.text("default_model_filename") or "model.onnx")
    numbers = sorted(int(entry.name) for entry in folder.iterdir() if entry.name.isdecimal() and entry.is_dir())
    if not numbers:
        raise SourceError(f"it has neither versions (1/{name}, 2/{name}, …) nor another layout that is known")
    if len(numbers) > _MAX_VERSIONS:
        raise SourceError(f"it has {len(numbers):,} versions; {_MAX_VERSIONS} can be added at one time")
    model = config.text("name") or folder.name
    kind, options = _kind(config), _options(config)
    return [Found(model, str(number), _inside(folder, f"{number}/{name}"), kind, options) for number in numbers]


def _read_config(folder: Path) -> Message:
    if not (folder / _CONFIG).exists():
        return Message()
    path = _inside(folder, _CONFIG)
    if path.stat().st_size > _MAX_CONFIG_BYTES:
        raise SourceError(f"its {_CONFIG} is larger than {_MAX_CONFIG_BYTES:,} bytes")
    try:
        return parse(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise SourceError(f"its {_CONFIG} can't be read: {error}") from None


def _options(config: Message) -> dict[str, Any]:
    """Triton's batch size and instances in our words. A `max_batch_size` of 0 is Triton's word for no batching."""
    options: dict[str, Any] = {}
    size = config.number("max_batch_size")
    if size is not None:
        options["max_batch"] = min(max(size, 1), 1024)
    groups = [group for group in config.messages("instance_group") if group.text("kind") in ("", "KIND_CPU")]
    count = sum(group.number("count") or 1 for group in groups)
    if count > 1:
        options["slots"] = count
    return options


def _kind(config: Message) -> str:
    """What the declared inputs tell of the model's kind; empty where they tell nothing."""
    inputs = config.messages("input")
    if any(port.text("name") == "input_ids" for port in inputs):
        return "embedding"
    if len(inputs) != 1:
        return ""
    # Without the batch where there is one, and with it where `max_batch_size` is 0.
    dims = len(inputs[0].numbers("dims")) + (0 if config.number("max_batch_size") else -1)
    return {1: "tabular", 3: "image"}.get(dims, "")


def _plain(name: str) -> str:
    if name != PurePosixPath(name).name or name in (".", ".."):
        raise SourceError(f"its default_model_filename {name!r} is no plain name")
    return name


def _inside(folder: Path, name: str) -> Path:
    root = folder.resolve()
    path = (root / name).resolve()
    if not path.is_relative_to(root):
        raise SourceError(f"{name} is a link that leads out of the folder")
    if not path.is_file():
        raise SourceError(f"there is no file {name} in it")
    return path
