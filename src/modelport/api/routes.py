"""The hot routes: one table that both serves and describes them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from modelport.api.edge import Handler
from modelport.api.generate import chat_completions, completions, embeddings
from modelport.api.messages import count_tokens, messages
from modelport.api.oip.infer import infer
from modelport.api.oip.wire import InferBody
from modelport.api.openai_responses import count_input_tokens, responses
from modelport.api.openapi import HotRoute
from modelport.api.predict import ClassifyRequest, classify, predict, predict_each
from modelport.api.predict_stream import predict_stream
from modelport.dialect.anthropic.shapes import CountTokensRequest, MessagesRequest
from modelport.requests import ChatRequest, CompletionRequest, EmbeddingRequest, PredictRequest, ResponsesRequest

_OBJECT: dict[str, Any] = {"type": "object"}
_USAGE = {
    "prompt_tokens": 12,
    "completion_tokens": 8,
    "total_tokens": 20,
    "prompt_tokens_details": {"cached_tokens": 0, "audio_tokens": 0},
    "completion_tokens_details": {
        "reasoning_tokens": 0,
        "audio_tokens": 0,
        "accepted_prediction_tokens": 0,
        "rejected_prediction_tokens": 0,
    },
}
_HEAD = {"id": "chatcmpl-0199d1c2a7f0", "created": 1767225600, "model": "smollm2-135m-instruct"}
_MESSAGE: dict[str, Any] = {
    "role": "assistant",
    "content": "The capital of France is Paris.",
    "refusal": None,
    "annotations": [],
}

CHAT = HotRoute(
    path="/v1/chat/completions",
    operation_id="create_chat_completion",
    summary="Create a chat completion",
    description="OpenAI's chat completions over any model of kind `chat`; with `stream: true` as server-sent events.",
    tag="Chat",
    request=ChatRequest,
    request_example={
        "model": "smollm2-135m-instruct",
        "messages": [{"role": "user", "content": "What is the capital of France?"}],
    },
    response_example={
        **_HEAD,
        "object": "chat.completion",
        "choices": [{"index": 0, "message": _MESSAGE, "logprobs": None, "finish_reason": "stop"}],
        "usage": _USAGE,
    },
    response_schema=_OBJECT,
    stream_example='data: {"object": "chat.completion.chunk", "choices": […]}\n\ndata: [DONE]\n\n',
)
COMPLETION = HotRoute(
    path="/v1/completions",
    operation_id="create_completion",
    summary="Create a completion",
    description="OpenAI's text completions over any model of kind `chat`; with `stream: true` as server-sent events.",
    tag="Chat",
    request=CompletionRequest,
    request_example={"model": "smollm2-135m-instruct", "prompt": "Once upon a time", "max_tokens": 16},
    response_example={
        "id": "cmpl-0199d1c2a7f0",
        "created": 1767225600,
        "model": "smollm2-135m-instruct",
        "object": "text_completion",
        "choices": [{"index": 0, "text": ", there was a king", "logprobs": None, "finish_reason": "length"}],
        "usage": _USAGE,
    },
    response_schema=_OBJECT,
    stream_example='data: {"object": "text_completion", "choices": […]}\n\ndata: [DONE]\n\n',
)
RESPONSE = HotRoute(
    path="/v1/responses",
    operation_id="create_response",
    summary="Create a response",
    description="OpenAI's Responses over any model of kind `chat`; with `stream: true` as server-sent events. Nothing "
    "is kept: earlier items are sent again in `input`. Tools are functions that the caller runs.",
    tag="Chat",
    request=ResponsesRequest,
    request_example={"model": "smollm2-135m-instruct", "input": "What is the capital of France?"},
    response_example={
        "id": "resp_0199d1c2a7f0",
        "object": "response",
        "created_at": 1767225600,
        "model": "smollm2-135m-instruct",
        "status": "completed",
        "error": None,
        "incomplete_details": None,
        "output": [
            {
                "id": "msg_0199d1c2a7f000",
                "type": "message",
                "status": "completed",
                "role": "assistant",
                "content": [
                    {
                        "type": "output_text",
                        "text": "The capital of France is Paris.",
                        "annotations": [],
                        "logprobs": [],
                    }
                ],
            }
        ],
        "usage": {
            "input_tokens": 12,
            "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
            "output_tokens": 8,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": 20,
        },
    },
    response_schema=_OBJECT,
    stream_example='event: response.output_text.delta\ndata: {"type": "response.output_text.delta", "delta": "P"}\n\n',
)
RESPONSE_TOKENS = HotRoute(
    path="/v1/responses/input_tokens",
    operation_id="count_response_input_tokens",
    summary="Count a response's input tokens",
    description="How many input tokens a request to `/v1/responses` would have. Nothing is run and nothing is charged; "
    "for models of other servers it is an estimate.",
    tag="Chat",
    request=ResponsesRequest,
    request_example={"model": "smollm2-135m-instruct", "input": "What is the capital of France?"},
    response_example={"object": "response.input_tokens", "input_tokens": 12},
    response_schema=_OBJECT,
)
EMBEDDING = HotRoute(
    path="/v1/embeddings",
    operation_id="create_embedding",
    summary="Create embeddings",
    description="One vector for each input text, as floats or base64.",
    tag="Chat",
    request=EmbeddingRequest,
    request_example={"model": "all-minilm-l6-v2", "input": "The food was delicious."},
    response_example={
        "object": "list",
        "data": [{"object": "embedding", "index": 0, "embedding": [0.0123, -0.0456]}],
        "model": "all-minilm-l6-v2",
        "usage": {"prompt_tokens": 7, "total_tokens": 7},
    },
    response_schema=_OBJECT,
)
_QUESTION = {
    "model": "smollm2-135m-instruct",
    "messages": [{"role": "user", "content": "What is the capital of France?"}],
}
MESSAGES = HotRoute(
    path="/v1/messages",
    operation_id="create_message",
    summary="Create a message",
    description="Anthropic's Messages over any model of kind `chat`; with `stream: true` as server-sent events. The "
    "key may come in `x-api-key` or as a Bearer token, `anthropic-version` is `2023-06-01` or `2026-10-21`.",
    tag="Messages",
    request=MessagesRequest,
    request_example={"max_tokens": 256, **_QUESTION},
    response_example={
        "id": "msg_0199d1c2a7f0",
        "type": "message",
        "role": "assistant",
        "model": "smollm2-135m-instruct",
        "content": [{"type": "text", "text": "The capital of France is Paris."}],
        "stop_reason": "end_turn",
        "stop_sequence": None,
        "usage": {
            "input_tokens": 12,
            "cache_creation_input_tokens": 0,
            "cache_read_input_tokens": 0,
            "output_tokens": 8,
        },
    },
    response_schema=_OBJECT,
    stream_example='event: message_start\ndata: {…}\n\nevent: message_stop\ndata: {"type": "message_stop"}\n\n',
    errors="anthropic",
    openai=False,
)
COUNT_TOKENS = HotRoute(
    path="/v1/messages/count_tokens",
    operation_id="count_message_tokens",
    summary="Count a message's tokens",
    description="How many input tokens a request to `/v1/messages` would have. Nothing is run and nothing is charged; "
    "for models of servers that don't count it is an estimate.",
    tag="Messages",
    request=CountTokensRequest,
    request_example=_QUESTION,
    response_example={"input_tokens": 12},
    response_schema=_OBJECT,
    errors="anthropic",
    openai=False,
)
PREDICT = HotRoute(
    path="/v1/predict",
    operation_id="create_prediction",
    summary="Predict",
    description="Inputs in, predictions out, for any model that answers at once. What an input looks like is the "
    "model's `input_schema`.",
    tag="Predict",
    request=PredictRequest,
    request_example={"model": "iris", "inputs": [[5.1, 3.5, 1.4, 0.2]]},
    response_example={
        "predictions": [{"label": "setosa", "index": 0, "probabilities": {"setosa": 0.98}}],
        "prediction_id": "pred_0199d1c2a7f07c3e8f6b5a4d3c2b1a09",
        "model": "iris",
        "model_version": "2",
        "request_id": "req_0199d1c2a7f07c3e8f6b5a4d3c2b1a09",
        "latency_ms": 1.204,
    },
    response_schema=_OBJECT,
    openai=False,
)
CLASSIFY = HotRoute(
    path="/v1/images/classify",
    operation_id="classify_image",
    summary="Classify an image",
    description="What is in a picture: JSON with base64 or a data URL, a multipart form, or the image as the body.",
    tag="Predict",
    request=ClassifyRequest,
    request_example={"model": "efficientnet-lite0", "image": "data:image/jpeg;base64,…", "top_k": 3},
    response_example={
        "predictions": [{"label": "tabby cat", "confidence": 0.71, "index": 281}],
        "model": "efficientnet-lite0",
        "model_version": "1",
        "request_id": "req_0199d1c2a7f07c3e8f6b5a4d3c2b1a09",
        "latency_ms": 12.81,
    },
    response_schema=_OBJECT,
    multipart=True,
    openai=False,
)
PREDICT_STREAM = replace(
    PREDICT,
    path="/v1/predict/stream",
    operation_id="stream_prediction",
    summary="Predict, with progress",
    description="As `/v1/predict`, as server-sent events: `queued`, `progress` every second, then `result` or `error`.",
    stream_example='event: queued\ndata: {"prediction_id": "pred_…"}\n\nevent: result\ndata: {"predictions": […]}\n\n',
)
PREDICT_EACH = HotRoute(
    path="/v2/predict",
    operation_id="create_predictions",
    summary="Predict each input",
    description="As `/v1/predict`, with a result for each input: what is wrong with one input fails it alone, and "
    "only what succeeded is charged.",
    tag="Predict",
    request=PredictRequest,
    request_example={"model": "iris", "inputs": [[5.1, 3.5, 1.4, 0.2], ["wide"]]},
    response_example={
        "results": [
            {
                "index": 0,
                "status": "succeeded",
                "prediction": {"label": "setosa", "index": 0, "probabilities": {"setosa": 0.98}},
            },
            {
                "index": 1,
                "status": "failed",
                "error": {
                    "message": "inputs[1] has 1 values; the model takes 4.",
                    "type": "invalid_request_error",
                    "code": "invalid_request_error",
                    "param": "inputs[1]",
                },
            },
        ],
        "counts": {"total": 2, "succeeded": 1, "failed": 1},
        "prediction_id": "pred_0199d1c2a7f07c3e8f6b5a4d3c2b1a09",
        "model": "iris",
        "model_version": "2",
        "request_id": "req_0199d1c2a7f07c3e8f6b5a4d3c2b1a09",
        "latency_ms": 1.204,
    },
    response_schema=_OBJECT,
    openai=False,
)
INFER = HotRoute(
    path="/v2/models/{model}/infer",
    operation_id="oip_infer",
    summary="Infer",
    description="Tensors in, tensors out: the Open Inference Protocol V2, as JSON or with tensors as bytes behind it "
    "(`Inference-Header-Content-Length`), gzip and deflate included.",
    tag="Open Inference Protocol",
    request=InferBody,
    request_example={
        "inputs": [{"name": "measurements", "shape": [1, 4], "datatype": "FP32", "data": [5.1, 3.5, 1.4, 0.2]}]
    },
    response_example={
        "model_name": "iris",
        "model_version": "2",
        "outputs": [{"name": "label", "datatype": "INT64", "shape": [1], "data": [0]}],
    },
    response_schema=_OBJECT,
    errors="inference",
    openai=False,
)
INFER_VERSION = replace(
    INFER,
    path="/v2/models/{model}/versions/{version}/infer",
    operation_id="oip_infer_version",
    summary="Infer with a version",
)

HOT: tuple[tuple[HotRoute, Handler], ...] = (
    (CHAT, chat_completions),
    (COMPLETION, completions),
    (RESPONSE, responses),
    (RESPONSE_TOKENS, count_input_tokens),
    (EMBEDDING, embeddings),
    (MESSAGES, messages),
    (COUNT_TOKENS, count_tokens),
    (PREDICT, predict),
    (PREDICT_STREAM, predict_stream),
    (CLASSIFY, classify),
    (PREDICT_EACH, predict_each),
    (INFER, infer),
    (INFER_VERSION, infer),
)
