"""What a model's file says by its name: which backend serves it. Pure."""

from __future__ import annotations

from pathlib import PurePosixPath
from urllib.parse import urlsplit

from modelport.errors import BadRequest

# Extension → backend, and the kind of models that it can only be.
_FORMATS: dict[str, tuple[str, str]] = {".onnx": ("onnx", ""), ".gguf": ("llamacpp", "chat")}


def format_name(source: str) -> str:
    """The format's name: `onnx` of `a/model.onnx`; empty where none is told."""
    return PurePosixPath(source).suffix.lower().removeprefix(".")


def backend_of(source: str) -> str:
    """Which backend serves a file. Raises: BadRequest for one that none serves."""
    return _FORMATS[_extension(source)][0]


def kind_of(source: str) -> str:
    """The kind that follows from the format alone; empty where there are several."""
    return _FORMATS[_extension(source)][1]


def _extension(source: str) -> str:
    path = urlsplit(source).path if source.startswith("https:") else source
    extension = PurePosixPath(path).suffix.lower()
    if extension not in _FORMATS:
        known = " or ".join(_FORMATS)
        raise BadRequest(f"The source must end in {known}, so that it is known what to do with it.", param="source")
    return extension
