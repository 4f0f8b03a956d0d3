"""Models in ONNX files, run in this process by onnxruntime: images, embeddings, tabular data.

onnxruntime, Pillow and tokenizers are loaded with the first model, never with this package.
"""

from __future__ import annotations

from modelport.backends.onnx.backend import OnnxBackend, build_onnx

__all__ = ["OnnxBackend", "build_onnx"]
