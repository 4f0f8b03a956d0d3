"""How answers are sampled: what the caller asked for, over the model row's options, over our own table."""

from __future__ import annotations

from typing import Any

from modelport.backends.llamacpp.options import LlamaCppOptions
from modelport.errors import BadRequest
from modelport.requests import ChatRequest, CompletionRequest

# What most instruct models are published with. The names are llama.cpp's. A model that needs more than that says so in
# its row's options, as the default one does: bench/sampling.py and docs/guides/local-llm.md tell how those were chosen.
DEFAULT_SAMPLING: dict[str, float] = {"temperature": 0.7, "top_k": 40, "top_p": 0.9, "min_p": 0.05}
# Has llama.cpp say with the last token which stop sequence it met; it says so nowhere else.
_TELL_STOP: dict[str, Any] = {"verbose": True, "response_fields": ["stopping_word"]}
_SEED_BITS = 0x7FFFFFFF
_MAX_BIAS = 100


def sampling_for(
    request: ChatRequest | CompletionRequest, options: LlamaCppOptions, *, structured: bool = False
) -> dict[str, Any]:
    """llama.cpp's sampling fields for one request. Raises: BadRequest.

    `structured`: the answer follows a grammar, whose own repetitions (keys, quotes) must not be held against it.
    """
    body: dict[str, Any] = {**DEFAULT_SAMPLING, **options.sampling}
    if structured:
        body |= {"dry_multiplier": 0.0, "repeat_penalty": 1.0}
    for name in ("temperature", "top_p", "frequency_penalty", "presence_penalty"):
        value = getattr(request, name)
        if value is not None:
            body[name] = value
    stop = [request.stop] if isinstance(request.stop, str) else request.stop or []
    if stop:
        body["stop"] = [text for text in stop if text]
        body |= _TELL_STOP
    if request.logit_bias:
        body["logit_bias"] = _bias(request.logit_bias)
    probabilities = _probabilities(request)
    if probabilities:
        body["n_probs"] = probabilities
    return body


def seed_for(request: ChatRequest | CompletionRequest, choice: int) -> int | None:
    """The seed of one choice, or None for a random one; choices of one call differ from each other."""
    return None if request.seed is None else (request.seed + choice) & _SEED_BITS


def _bias(biases: dict[str, float]) -> list[list[float]]:
    out = []
    for token, bias in biases.items():
        if not token.isascii() or not token.isdigit() or len(token) > 9:
            raise BadRequest("logit_bias maps token numbers to values.", param="logit_bias")
        if not -_MAX_BIAS <= bias <= _MAX_BIAS:
            raise BadRequest("A bias is between -100 and 100.", param="logit_bias")
        out.append([int(token), bias])
    return out


def _probabilities(request: ChatRequest | CompletionRequest) -> int:
    if isinstance(request, CompletionRequest):
        return 0 if request.logprobs is None else max(request.logprobs, 1)
    if request.top_logprobs and not request.logprobs:
        raise BadRequest("top_logprobs needs logprobs: true.", param="top_logprobs")
    return max(request.top_logprobs or 0, 1) if request.logprobs else 0
