"""The typed view of an inference request's body: what the platform itself reads of it.

Members that are not named here are no error: they stay in `Call.fields` and are forwarded to upstreams that may
know them. Checked by msgspec while it decodes; a wrong type is a 400 that names the member.

Source: the OpenAI API reference for chat completions, completions, responses and embeddings, as of 2026-11.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import UNSET, Meta, UnsetType

from modelport.calls import Tensor

MAX_CHOICES = 16

ModelName = Annotated[str, Meta(min_length=1, max_length=200)]
_TokenBound = Annotated[int, Meta(ge=1)]
_Penalty = Annotated[float, Meta(ge=-2, le=2)]


class StreamOptions(msgspec.Struct):
    include_usage: bool | None = None


class Message(msgspec.Struct):
    """One message of a chat. `content` is text, a list of parts, or null beside tool calls."""

    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: str | list[dict[str, Any]] | None = None
    name: str | None = None
    tool_calls: list[dict[str, Any]] | None = None
    tool_call_id: str | None = None


class _Generation(msgspec.Struct, kw_only=True):
    """What chat and completions share."""

    model: ModelName
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_tokens: _TokenBound | None = None
    n: Annotated[int, Meta(ge=1, le=MAX_CHOICES)] | None = None
    temperature: Annotated[float, Meta(ge=0, le=2)] | None = None
    top_p: Annotated[float, Meta(ge=0, le=1)] | None = None
    frequency_penalty: _Penalty | None = None
    presence_penalty: _Penalty | None = None
    seed: int | None = None
    stop: str | Annotated[list[str], Meta(max_length=16)] | None = None
    logit_bias: dict[str, float] | None = None
    user: str | None = None
    metadata: dict[str, Any] | None = None

    @property
    def include_usage(self) -> bool:
        return self.stream_options is not None and bool(self.stream_options.include_usage)


class ChatRequest(_Generation, kw_only=True):
    messages: Annotated[list[Message], Meta(min_length=1)]
    max_completion_tokens: _TokenBound | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Meta(ge=0, le=20)] | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    response_format: dict[str, Any] | None = None

    @property
    def output_bound(self) -> int | None:
        """The most tokens one choice may have, where the caller said so."""
        return self.max_completion_tokens or self.max_tokens


class CompletionRequest(_Generation, kw_only=True):
    prompt: str | list[str | int | list[int]]
    echo: bool | None = None
    suffix: str | None = None
    best_of: int | None = None
    logprobs: Annotated[int, Meta(ge=0, le=20)] | None = None

    @property
    def output_bound(self) -> int | None:
        return self.max_tokens


class ResponsesRequest(msgspec.Struct, kw_only=True):
    """OpenAI's Responses. `input` is a text, or items: messages, function calls and their outputs."""

    model: ModelName
    input: str | Annotated[list[dict[str, Any]], Meta(min_length=1)]
    instructions: str | None = None
    stream: bool | None = None
    max_output_tokens: _TokenBound | None = None
    temperature: Annotated[float, Meta(ge=0, le=2)] | None = None
    top_p: Annotated[float, Meta(ge=0, le=1)] | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    text: dict[str, Any] | None = None
    reasoning: dict[str, Any] | None = None
    include: list[str] | None = None
    top_logprobs: Annotated[int, Meta(ge=0, le=20)] | None = None
    truncation: Literal["auto", "disabled"] | None = None
    store: bool | None = None
    previous_response_id: str | None = None
    background: bool | None = None
    metadata: dict[str, Any] | None = None
    user: str | None = None


class EmbeddingRequest(msgspec.Struct, kw_only=True):
    model: ModelName
    input: str | list[str | int | list[int]]
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: Annotated[int, Meta(ge=1)] | None = None
    user: str | None = None
    metadata: dict[str, Any] | None = None


class PredictRequest(msgspec.Struct, kw_only=True):
    """Inputs for a model that predicts; what an input looks like is the model's own schema.

    `inputs` may hold `bytes` where the door received a file.
    """

    inputs: Annotated[list[Any], Meta(min_length=1)]
    model: ModelName | UnsetType = UNSET
    model_version: Annotated[str, Meta(max_length=80)] | None = None
    options: dict[str, Any] = {}
    metadata: dict[str, Any] | None = None


class InferRequest(msgspec.Struct, kw_only=True):
    """Tensors for a model, by the names of its own inputs. `outputs` are the ones wanted; none means all.

    Its door puts model and version in, which stand in the path.

    Source: Open Inference Protocol V2, "Inference Request".
    """

    inputs: list[Tensor]
    outputs: list[str] = []
    parameters: dict[str, Any] = {}
    model: str = ""
    model_version: str | None = None
    metadata: dict[str, Any] | None = None


GenerationRequest = ChatRequest | CompletionRequest
InferenceRequest = ChatRequest | CompletionRequest | EmbeddingRequest | PredictRequest | InferRequest
