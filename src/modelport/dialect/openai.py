"""The OpenAI dialect: how answers are written as bytes, and how a stream folds into one JSON body.

Engines write their answers with `ChunkWriter`; `fold` turns the chunks of any backend into the answer of a call that
did not ask to stream. So there is one path, and JSON is the end of a stream.

Source: OpenAI API reference (chat completion chunk object, completion object), as of 2026-11.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import msgspec

from modelport.calls import Call, Operation, Usage

DONE = b"data: [DONE]\n\n"
_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder().decode


def usage_body(usage: Usage) -> dict[str, Any]:
    """The `usage` member of a chat or text completion."""
    return {
        "prompt_tokens": usage.input_tokens,
        "completion_tokens": usage.output_tokens,
        "total_tokens": usage.input_tokens + usage.output_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.cached_tokens, "audio_tokens": 0},
        "completion_tokens_details": {
            "reasoning_tokens": usage.reasoning_tokens,
            "audio_tokens": 0,
            "accepted_prediction_tokens": 0,
            "rejected_prediction_tokens": 0,
        },
    }


def usage_from(body: Any) -> Usage | None:
    """The usage that an OpenAI-compatible server reported, or None where it reported none that makes sense."""
    if not isinstance(body, dict):
        return None
    prompt, total = body.get("prompt_tokens"), body.get("total_tokens")
    output = body.get("completion_tokens")
    if not isinstance(prompt, int) or prompt < 0:
        return None
    if not isinstance(output, int) or output < 0:
        output = max(total - prompt, 0) if isinstance(total, int) else 0
    return Usage(
        input_tokens=prompt,
        output_tokens=output,
        cached_tokens=min(_detail(body, "prompt_tokens_details", "cached_tokens"), prompt),
        reasoning_tokens=_detail(body, "completion_tokens_details", "reasoning_tokens"),
    )


def _detail(body: dict[str, Any], group: str, name: str) -> int:
    details = body.get(group)
    value = details.get(name) if isinstance(details, dict) else None
    return value if isinstance(value, int) and value > 0 else 0


class ChunkWriter:
    """Writes one call's answer as server-sent events: one id, time, model and fingerprint throughout.

    Every method returns a complete event. The order per choice: `role` (chat only), then any of `text`,
    `tool_start` and `tool_arguments`, then `finish`; after all choices `usage`, which is empty where the caller did
    not ask for it.
    """

    __slots__ = ("_after", "_before", "_chat", "_include_usage", "_translated")

    def __init__(self, call: Call, *, fingerprint: str, like: Mapping[str, Any] | None = None) -> None:
        """`like` is a chunk of the answer that somebody else began and this writer ends."""
        self._chat = call.operation is Operation.CHAT
        self._include_usage = call.stream and call.request.include_usage
        self._translated = call.original is not None
        head = {
            "id": f"{'chatcmpl' if self._chat else 'cmpl'}-{call.id[4:]}",
            "object": "chat.completion.chunk" if self._chat else "text_completion",
            "created": call.started_us // 1_000_000,
            "model": call.model,
            "system_fingerprint": fingerprint,
        }
        if like is not None:
            head = {name: like[name] for name in head if name in like}
        self._before = b"data: " + _encode(head)[:-1] + b',"choices":['
        self._after = b'],"usage":null}\n\n' if self._include_usage else b"]}\n\n"

    def role(self, index: int = 0) -> bytes:
        """The opening chunk of a chat choice."""
        return self._delta(index, b'{"role":"assistant","content":"","refusal":null}')

    def text(self, text: str, *, index: int = 0, logprobs: Any = None) -> bytes:
        if not self._chat:
            return self._choice(
                b'{"text":%b,"index":%d,"logprobs":%b,"finish_reason":null}'
                % (_encode(text), index, _encode(logprobs) if logprobs is not None else b"null")
            )
        return self._delta(index, b'{"content":%b}' % _encode(text), logprobs)

    def thought(self, text: str, *, index: int = 0) -> bytes:
        """A piece of the chain of thought, in the member that vLLM and DeepSeek have for it."""
        return self._delta(index, b'{"reasoning_content":%b}' % _encode(text))

    def tool_start(self, tool: int, *, id: str, name: str, index: int = 0, extra_content: Any = None) -> bytes:
        """The opening of the choice's tool call number `tool`, before its arguments.

        `extra_content` is what a provider wants back with the call, as Google's own OpenAI door writes it.
        """
        call = {"index": tool, "id": id, "type": "function", "function": {"name": name, "arguments": ""}}
        if extra_content is not None:
            call["extra_content"] = extra_content
        return self._delta(index, b'{"tool_calls":[%b]}' % _encode(call))

    def tool_arguments(self, tool: int, text: str, *, index: int = 0) -> bytes:
        return self._delta(index, b'{"tool_calls":[{"index":%d,"function":{"arguments":%b}}]}' % (tool, _encode(text)))

    def finish(self, reason: str, *, index: int = 0, stop: str = "") -> bytes:
        """The end of a choice. `stop` is the stop sequence that was met, which OpenAI's dialect has no word for: it is
        written, in vLLM's, only for doors that translate into a dialect which has one."""
        if stop and self._translated:
            return self._choice(
                b'{"index":%d,"delta":{},"logprobs":null,"finish_reason":%b,"stop_reason":%b}'
                % (index, _encode(reason), _encode(stop))
            )
        if self._chat:
            return self._choice(
                b'{"index":%d,"delta":{},"logprobs":null,"finish_reason":%b}' % (index, _encode(reason))
            )
        return self._choice(b'{"text":"","index":%d,"logprobs":null,"finish_reason":%b}' % (index, _encode(reason)))

    def usage(self, usage: Usage) -> bytes:
        """The last chunk, where the caller asked for it with `stream_options.include_usage`; else nothing."""
        if not self._include_usage:
            return b""
        return self._before + b'],"usage":' + _encode(usage_body(usage)) + b"}\n\n"

    def _delta(self, index: int, delta: bytes, logprobs: Any = None) -> bytes:
        text = _encode(logprobs) if logprobs is not None else b"null"
        return self._choice(b'{"index":%d,"delta":%b,"logprobs":%b,"finish_reason":null}' % (index, delta, text))

    def _choice(self, choice: bytes) -> bytes:
        return self._before + choice + self._after


def events(raw: bytes) -> Iterator[Any]:
    """The decoded JSON of each complete server-sent event in `raw`; comments and `[DONE]` are left out."""
    for line in raw.split(b"\n"):
        if line.startswith(b"data:"):
            payload = line[5:].strip()
            if payload and payload != b"[DONE]":
                yield _decode(payload)


def fold(pieces: Iterable[bytes], usage: Usage) -> bytes:
    """The JSON body of a chat or text completion whose chunks are `pieces`, with `usage` as its usage."""
    head: dict[str, Any] = {}
    choices: dict[int, dict[str, Any]] = {}
    for chunk in (chunk for raw in pieces for chunk in events(raw)):
        head = head or chunk
        for part in chunk.get("choices", ()):
            _merge(choices.setdefault(part["index"], {}), part)
    chat = head.get("object") == "chat.completion.chunk"
    body = {
        "id": head.get("id"),
        "object": "chat.completion" if chat else "text_completion",
        "created": head.get("created"),
        "model": head.get("model"),
        "choices": [_choice(index, choices[index], chat) for index in sorted(choices)],
        "usage": usage_body(usage),
        "system_fingerprint": head.get("system_fingerprint"),
    }
    return _encode(body)


def _merge(choice: dict[str, Any], part: dict[str, Any]) -> None:
    """Add one chunk's part of a choice to what came before it; lists of pieces are joined in `_choice`."""
    delta = part.get("delta") or {}
    choice.setdefault("text", []).append(part.get("text") or delta.get("content") or "")
    if delta.get("refusal"):
        choice["refusal"] = choice.get("refusal", "") + delta["refusal"]
    if delta.get("reasoning_content"):
        choice["reasoning_content"] = choice.get("reasoning_content", "") + delta["reasoning_content"]
    for tool in delta.get("tool_calls") or ():
        _merge_tool(choice.setdefault("tools", {}), tool)
    if part.get("logprobs"):
        _merge_logprobs(choice.setdefault("logprobs", {}), part["logprobs"])
    choice["finish_reason"] = part.get("finish_reason") or choice.get("finish_reason")


def _merge_tool(tools: dict[int, dict[str, Any]], part: dict[str, Any]) -> None:
    tool = tools.setdefault(part["index"], {"id": None, "name": "", "arguments": []})
    function = part.get("function") or {}
    tool["id"] = part.get("id") or tool["id"]
    tool["extra_content"] = part.get("extra_content") or tool.get("extra_content")
    tool["name"] += function.get("name") or ""
    tool["arguments"].append(function.get("arguments") or "")


def _merge_logprobs(into: dict[str, Any], part: dict[str, Any]) -> None:
    for name, values in part.items():
        before = into.get(name)
        if isinstance(before, list):
            before.extend(values or ())
        elif values is not None or name not in into:
            into[name] = values


def _choice(index: int, choice: dict[str, Any], chat: bool) -> dict[str, Any]:
    text = "".join(choice.get("text", ()))
    tail = {"logprobs": choice.get("logprobs"), "finish_reason": choice.get("finish_reason")}
    if not chat:
        return {"text": text, "index": index, **tail}
    tools = [_tool(tool) for _, tool in sorted(choice.get("tools", {}).items())]
    message: dict[str, Any] = {
        "role": "assistant",
        "content": None if tools and not text else text,
        "refusal": choice.get("refusal"),
        "annotations": [],
    }
    if choice.get("reasoning_content"):
        message["reasoning_content"] = choice["reasoning_content"]
    if tools:
        message["tool_calls"] = tools
    return {"index": index, "message": message, **tail}


def _tool(tool: dict[str, Any]) -> dict[str, Any]:
    function = {"name": tool["name"], "arguments": "".join(tool["arguments"])}
    body = {"id": tool["id"], "type": "function", "function": function}
    return body | {"extra_content": tool["extra_content"]} if tool["extra_content"] else body
