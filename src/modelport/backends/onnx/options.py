"""What the configuration can say about an ONNX model, and what the file says about itself.

An option set on the version wins over one on the model, and that over the file's own metadata (the JSON object
that `modelport.catalog.prepare` writes into it under `modelport`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

import msgspec

_Positive = Annotated[int, msgspec.Meta(ge=1)]
_Triple = tuple[float, float, float]


class UnusableModel(Exception):
    """The model can't be served. The message tells the operator why; it becomes the model's status."""


class OnnxOptions(msgspec.Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    """Options of every ONNX model, then of each kind. Empty ones are taken from the file, or are the defaults."""

    threads: _Positive | None = None  # Of the engine; empty: the cores, at most 4.
    queue: _Positive = 256  # Calls inside at one time; more get 503.
    max_batch: Annotated[int, msgspec.Meta(ge=1, le=1024)] | None = None  # Inputs computed together.
    max_inputs: Annotated[int, msgspec.Meta(ge=1, le=100_000)] | None = None  # Inputs in one call.
    max_elements: _Positive = 16_777_216  # Elements of the tensors of one call, in all.
    slots: _Positive = 1  # Batches computed at one time; slots × threads are kept within the cores.
    slo_ms: Annotated[float, msgspec.Meta(gt=0)] | None = None  # Calls that would take longer are refused with 503.

    # Images and tabular data. `labels`: a list, or the path of a JSON list or of a text file with one in a line.
    labels: list[str] | str = msgspec.field(default_factory=list)
    output: Literal["probabilities", "logits", "value", "embedding"] = "logits"

    # Images. `mean` and `std` are in units of 0 to 255, for files whose input is float; a uint8 input gets pixels.
    mean: _Triple = (0.0, 0.0, 0.0)
    std: _Triple = (255.0, 255.0, 255.0)
    crop_fraction: Annotated[float, msgspec.Meta(gt=0, le=1)] = 0.875
    size: _Positive | None = None
    top_k: _Positive = 5
    max_pixels: _Positive = 51_000_000  # JPEG, which is decoded small; a third of it for the others.
    max_image_bytes: _Positive = 20_000_000

    # Tabular data.
    features: list[str] = []

    # Embeddings. `tokenizer` is the content of a tokenizer.json, or its path.
    tokenizer: str = ""
    max_tokens: Annotated[int, msgspec.Meta(ge=4, le=65_536)] = 512
    pooling: Literal["mean", "cls"] = "mean"


def read_options(metadata: Mapping[str, str], *configured: Mapping[str, Any]) -> OnnxOptions:
    """The options in force; later ones win. Raises: UnusableModel that names the wrong one."""
    merged: dict[str, Any] = {}
    try:
        own = metadata.get("modelport")
        if own is not None:
            merged |= msgspec.json.decode(own, type=dict[str, Any])
        for layer in configured:
            merged |= layer
        return msgspec.convert(merged, OnnxOptions)
    except msgspec.ValidationError as error:
        raise UnusableModel(f"the model's options are not valid: {error}") from error
    except msgspec.DecodeError as error:
        raise UnusableModel("the description inside of the model's file is no JSON") from error
