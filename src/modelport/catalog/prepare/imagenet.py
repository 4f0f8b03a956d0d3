"""EfficientNet-lite0 as ONNX: an image classifier for the 1,000 classes of ImageNet.

The graph takes pictures as they are, `uint8` of shape (batch, 224, 224, 3), and returns probabilities, so that what
a pixel means to the network lies in the file and nowhere else. Batch normalisation is folded into the convolutions.

Source: Tan and Le 2019 (arXiv:1905.11946), table 1, without squeeze-and-excite and with ReLU6, as the "lite" release
of the TensorFlow TPU models (2020) describes; weights of that release.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from modelport.catalog.prepare.onnx_file import GraphBuilder
from modelport.catalog.prepare.torch_file import read_state_dict

SIZE = 224
# What the network was trained with: pixels become (value - 127) / 128.
_MEAN, _SCALE = 127.0, 128.0
_BN_EPSILON = 1e-3
# Stride of the first block of each group and how often the block is repeated.
_GROUPS = ((1, 1), (2, 2), (2, 2), (2, 3), (1, 3), (2, 4), (1, 1))

Weights = Mapping[str, NDArray[Any]]


def build_efficientnet_lite0(checkpoint: bytes, labels: list[str]) -> bytes:
    """The ONNX file. Raises: UnreadableCheckpoint; KeyError when the checkpoint is another network's."""
    weights = read_state_dict(checkpoint)
    graph = GraphBuilder(opset=21)
    x = graph.input("image", "uint8", ["batch", SIZE, SIZE, 3])
    x = graph.node("Transpose", x, perm=[0, 3, 1, 2])
    x = graph.node("Cast", x, to=1)
    x = graph.node("Sub", x, graph.constant(np.array(_MEAN, np.float32)))
    x = graph.node("Mul", x, graph.constant(np.array(1 / _SCALE, np.float32)))
    network = _Network(graph, weights)
    x = network.convolve(x, "_conv_stem", "_bn0", stride=2, size=SIZE)
    size, index = SIZE // 2, 0
    for first_stride, repeats in _GROUPS:
        for position in range(repeats):
            stride = first_stride if position == 0 else 1
            x = network.block(x, index, stride=stride, size=size)
            size, index = size // stride, index + 1
    x = network.convolve(x, "_conv_head", "_bn1", stride=1, size=size)
    x = graph.node("Flatten", graph.node("GlobalAveragePool", x))
    logits = graph.node("Gemm", x, network.weight("_fc.weight"), network.weight("_fc.bias"), transB=1)
    graph.node("Softmax", logits, name="probabilities", axis=1)
    graph.output("probabilities", "float32", ["batch", len(labels)])
    description = {"labels": labels, "output": "probabilities", "crop_fraction": SIZE / (SIZE + 32)}
    return graph.build("efficientnet-lite0", metadata={"modelport": json.dumps(description)})


def imagenet_labels(names: Mapping[str, str], clean_names: list[str]) -> list[str]:
    """One word or two for each of the 1,000 classes, all different.

    The first of the dataset's own names, as other ImageNet models print it; where an earlier class has that name
    already (the crane that lifts, after the crane that flies), the curated one.
    """
    labels: list[str] = []
    for index, clean in enumerate(clean_names):
        first = names[str(index)].split(",")[0].strip()
        labels.append(clean if first in labels else first)
    return labels


class _Network:
    """Adds EfficientNet's parts to a graph."""

    def __init__(self, graph: GraphBuilder, weights: Weights) -> None:
        self._graph = graph
        self._weights = weights

    def weight(self, name: str) -> str:
        return self._graph.constant(self._weights[name].astype(np.float32), name)

    def convolve(self, x: str, conv: str, norm: str, *, stride: int, size: int, activate: bool = True) -> str:
        """A convolution with the batch normalisation that follows it, then ReLU6."""
        kernel = self._weights[f"{conv}.weight"].astype(np.float64)
        scale, shift = self._folded(norm)
        folded = (kernel * scale[:, None, None, None]).astype(np.float32)
        before, after = _same_padding(size, kernel=kernel.shape[2], stride=stride)
        x = self._graph.node(
            "Conv",
            x,
            self._graph.constant(folded, f"{conv}.weight"),
            self._graph.constant(shift.astype(np.float32), f"{conv}.bias"),
            group=kernel.shape[0] if kernel.shape[1] == 1 and "depthwise" in conv else 1,
            kernel_shape=[kernel.shape[2]] * 2,
            pads=[before, before, after, after],
            strides=[stride, stride],
        )
        return self._clip(x) if activate else x

    def block(self, x: str, index: int, *, stride: int, size: int) -> str:
        """An inverted residual block: expand, filter each channel, project; plus its input where the shapes agree."""
        prefix = f"_blocks.{index}."
        y = x
        if f"{prefix}_expand_conv.weight" in self._weights:
            y = self.convolve(y, f"{prefix}_expand_conv", f"{prefix}_bn0", stride=1, size=size)
        y = self.convolve(y, f"{prefix}_depthwise_conv", f"{prefix}_bn1", stride=stride, size=size)
        y = self.convolve(y, f"{prefix}_project_conv", f"{prefix}_bn2", stride=1, size=size // stride, activate=False)
        out_channels = self._weights[f"{prefix}_project_conv.weight"].shape[0]
        expand = self._weights.get(f"{prefix}_expand_conv.weight")
        residual = stride == 1 and expand is not None and expand.shape[1] == out_channels
        return self._graph.node("Add", y, x) if residual else y

    def _folded(self, norm: str) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """What a batch normalisation multiplies by and adds, in double precision."""
        gamma, beta, mean, variance = (
            self._weights[f"{norm}.{part}"].astype(np.float64)
            for part in ("weight", "bias", "running_mean", "running_var")
        )
        scale = gamma / np.sqrt(variance + _BN_EPSILON)
        return scale, beta - mean * scale

    def _clip(self, x: str) -> str:
        zero = self._graph.constant(np.array(0, np.float32), "zero")
        six = self._graph.constant(np.array(6, np.float32), "six")
        return self._graph.node("Clip", x, zero, six)


def _same_padding(size: int, *, kernel: int, stride: int) -> tuple[int, int]:
    """TensorFlow's "SAME": the output has size/stride places, and an odd pixel of padding goes after the picture."""
    total = max((-(-size // stride) - 1) * stride + kernel - size, 0)
    return total // 2, total - total // 2
