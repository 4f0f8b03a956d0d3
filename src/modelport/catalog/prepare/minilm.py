"""all-MiniLM-L6-v2 as ONNX: tokens in, unit vectors of 384 numbers out, mostly with 8-bit weights.

Pooling and normalisation lie inside the graph. Every token is quantised with a scale of its own, not with one for
the whole batch as the usual recipe does, so a sentence's vector depends on that sentence alone and never on who else
was in the batch. See docs/decisions/0004-model-files.md for what was measured.

Source: Devlin et al. 2018 (arXiv:1810.04805) for the network; the model card of
sentence-transformers/all-MiniLM-L6-v2 for pooling and the limit of 256 tokens.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from modelport.catalog.prepare.onnx_file import GraphBuilder
from modelport.catalog.prepare.safetensors_file import read_tensors

WIDTH = 384
MAX_TOKENS = 256
_LAYERS = 6
_HEADS = 12
_NORM_EPSILON = 1e-12
# The largest weight becomes 127: one step less than int8 holds, so that the scale is the same to both sides of zero.
_INT8_MAX = 127

Weights = Mapping[str, NDArray[Any]]


def build_minilm(safetensors: bytes, tokenizer_json: str, *, int8: bool = True) -> bytes:
    """The ONNX file, with the tokenizer in its metadata. Raises: UnreadableTensors; KeyError for another network."""
    graph = GraphBuilder(opset=21)
    encoder = _Encoder(graph, read_tensors(safetensors), int8=int8)
    ids = graph.input("input_ids", "int64", ["batch", "length"])
    mask = graph.input("attention_mask", "int64", ["batch", "length"])
    keep = graph.node("Cast", mask, to=1)
    # Minus infinity, as far as a float holds it, on places that are padding: their attention is exactly zero.
    one, lowest = encoder.number(1.0), encoder.number(float(np.finfo(np.float32).min))
    bias = graph.node("Mul", graph.node("Sub", one, graph.node("Unsqueeze", keep, encoder.axes(1, 2))), lowest)
    x = encoder.embed(ids)
    for index in range(_LAYERS):
        x = encoder.layer(x, bias, index)
    graph.node("Identity", _pooled(graph, encoder, x, keep), name="embedding")
    graph.output("embedding", "float32", ["batch", WIDTH])
    description = {"tokenizer": _plain_tokenizer(tokenizer_json), "max_tokens": MAX_TOKENS, "output": "embedding"}
    return graph.build("all-MiniLM-L6-v2", metadata={"modelport": json.dumps(description)})


def _pooled(graph: GraphBuilder, encoder: _Encoder, x: str, keep: str) -> str:
    """The mean over the real tokens, scaled to length one."""
    weights = graph.node("Unsqueeze", keep, encoder.axes(2))
    total = graph.node("ReduceSum", graph.node("Mul", x, weights), encoder.axes(1), keepdims=0)
    count = graph.node("ReduceSum", keep, encoder.axes(1), keepdims=1)
    return graph.node("LpNormalization", graph.node("Div", total, count), axis=1, p=2)


def _plain_tokenizer(tokenizer_json: str) -> str:
    """The tokenizer without the truncation and padding that its last user had set."""
    tokenizer = json.loads(tokenizer_json)
    return json.dumps({**tokenizer, "truncation": None, "padding": None}, separators=(",", ":"))


class _Encoder:
    """Adds BERT's parts to a graph."""

    def __init__(self, graph: GraphBuilder, weights: Weights, *, int8: bool) -> None:
        self._graph = graph
        self._weights = weights
        self._int8 = int8

    def number(self, value: float) -> str:
        return self._graph.constant(np.array(value, np.float32))

    def axes(self, *values: int) -> str:
        return self._graph.constant(np.array(values, np.int64))

    def embed(self, ids: str) -> str:
        """The sum of word, position and (always the first) segment vectors, normalised."""
        graph = self._graph
        words = self._words(ids)
        places = self._weights["embeddings.position_embeddings.weight"]
        # Every token belongs to the first segment, so its vector is part of the position's.
        places = places + self._weights["embeddings.token_type_embeddings.weight"][0]
        length = graph.node("Shape", ids, start=1, end=2)
        table = graph.constant(places.astype(np.float32), "positions")
        used = graph.node("Slice", table, self.axes(0), length, self.axes(0))
        return self._norm(graph.node("Add", words, used), "embeddings.LayerNorm")

    def layer(self, x: str, bias: str, index: int) -> str:
        """Attention and the feed-forward network, each added to its input and normalised."""
        prefix = f"encoder.layer.{index}."
        attended = self._attention(x, bias, prefix + "attention.")
        x = self._norm(self._graph.node("Add", attended, x), prefix + "attention.output.LayerNorm")
        inner = self._dense(x, [prefix + "intermediate.dense"], int8=self._int8)
        outer = self._dense(self._graph.node("Gelu", inner), [prefix + "output.dense"], int8=self._int8)
        return self._norm(self._graph.node("Add", outer, x), prefix + "output.LayerNorm")

    def _attention(self, x: str, bias: str, prefix: str) -> str:
        graph = self._graph
        names = [f"{prefix}self.{part}" for part in ("query", "key", "value")]
        # One multiplication makes all three; (batch, length, 3, heads, size) is then cut along the third axis.
        # They stay in full precision: of all parts they lose most by 8 bits (least cosine 0.979 with, 0.992 without).
        joined = self._dense(x, names, int8=False)
        size = WIDTH // _HEADS
        split = graph.node("Reshape", joined, self.axes(0, 0, 3, _HEADS, size))
        turned = graph.node("Transpose", split, perm=[2, 0, 3, 1, 4])
        query, key, value = (
            graph.node("Gather", turned, graph.constant(np.array(part, np.int64)), axis=0) for part in range(3)
        )
        scores = graph.node("MatMul", query, graph.node("Transpose", key, perm=[0, 1, 3, 2]))
        scaled = graph.node("Mul", scores, self.number(size**-0.5))
        masked = graph.node("Add", scaled, bias)
        mixed = graph.node("MatMul", graph.node("Softmax", masked, axis=3), value)
        merged = graph.node("Transpose", mixed, perm=[0, 2, 1, 3])
        flat = graph.node("Reshape", merged, self.axes(0, 0, WIDTH))
        return self._dense(flat, [prefix + "output.dense"], int8=self._int8)

    def _norm(self, x: str, name: str) -> str:
        scale, shift = (self._graph.constant(self._weights[f"{name}.{part}"]) for part in ("weight", "bias"))
        return self._graph.node("LayerNormalization", x, scale, shift, axis=-1, epsilon=_NORM_EPSILON)

    def _words(self, ids: str) -> str:
        graph = self._graph
        table = self._weights["embeddings.word_embeddings.weight"]
        if not self._int8:
            return graph.node("Gather", graph.constant(table, "words"), ids)
        steps, scales = _quantized(table)
        rows = graph.node("Cast", graph.node("Gather", graph.constant(steps, "words"), ids), to=1)
        return graph.node("Mul", rows, graph.node("Gather", graph.constant(scales), ids))

    def _dense(self, x: str, names: list[str], *, int8: bool) -> str:
        """A linear layer; several side by side become one."""
        graph = self._graph
        weight = np.concatenate([self._weights[f"{name}.weight"] for name in names])
        shift = np.concatenate([self._weights[f"{name}.bias"] for name in names])
        if int8:
            product = self._int8_product(x, weight)
        else:
            product = graph.node("MatMul", x, graph.constant(np.ascontiguousarray(weight.T)))
        return graph.node("Add", product, graph.constant(shift))

    def _int8_product(self, x: str, weight: NDArray[np.float32]) -> str:
        """`x @ weight.T` in 8-bit integers: one scale for each token, one for each column of the weights.

        Both sides are unsigned around 128: with signed weights, processors without VNNI add two products in 16 bits,
        which saturate, so that the same text would have other vectors there.
        """
        graph = self._graph
        steps, scales = _quantized(weight)
        largest = graph.node("ReduceMax", graph.node("Abs", x), self.axes(-1), keepdims=1)
        scale = graph.node("Mul", graph.node("Max", largest, self.number(1e-12)), self.number(1 / _INT8_MAX))
        rounded = graph.node("Round", graph.node("Div", x, scale))
        shifted = graph.node("Add", rounded, self.number(128.0))
        integers = graph.node("Cast", shifted, to=2)
        table = graph.constant(np.ascontiguousarray(steps.T.astype(np.int16) + 128).astype(np.uint8))
        middle = graph.constant(np.array(128, np.uint8))
        product = graph.node("MatMulInteger", integers, table, middle, middle)
        columns = graph.constant(np.ascontiguousarray(scales.T))
        return graph.node("Mul", graph.node("Mul", graph.node("Cast", product, to=1), scale), columns)


def _quantized(table: NDArray[np.float32]) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Each row as int8 steps, and the size of its step in a column of its own."""
    scales = (np.abs(table).max(axis=1, keepdims=True) / np.float32(_INT8_MAX)).astype(np.float32)
    return np.round(table / scales).astype(np.int8), scales
