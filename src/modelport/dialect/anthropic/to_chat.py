"""A Messages request as a chat request, for every backend that speaks OpenAI's dialect.

Total: what has no counterpart (a server's own tools, a document by address) is left as it stands, for the backend to
refuse by name. So a call that goes on to an upstream of Anthropic's own, which gets the original, is never refused
here. What only Anthropic's models can do (thinking, caching, containers) is left out.
"""

from __future__ import annotations

from typing import Any

import msgspec

from modelport.dialect.anthropic.shapes import Block, CountTokensRequest, MessagesRequest, Turn

# What is translated below, what only Anthropic's own models know, and what would make more of an answer than it has.
_NOT_FORWARDED = frozenset(
    {
        "model", "messages", "system", "max_tokens", "stop_sequences", "tools", "tool_choice", "metadata", "stream",
        "output_config", "output_format", "thinking", "cache_control", "container", "context_management", "diagnostics",
        "inference_geo", "mcp_servers", "service_tier", "speed", "n", "max_completion_tokens",
    }
)  # fmt: skip
# Blocks of an assistant's earlier turns that nobody but the server which wrote them can use.
_SERVER_BLOCKS = frozenset({"thinking", "redacted_thinking", "server_tool_use", "container_upload", "compaction"})
_CHOICES = {"auto": "auto", "any": "required", "none": "none"}
_encode = msgspec.json.Encoder().encode


def to_chat(request: CountTokensRequest, fields: dict[str, msgspec.Raw]) -> dict[str, Any]:
    """The body of the chat request; members of `fields` that neither dialect knows are in it unchanged."""
    body: dict[str, Any] = {name: raw for name, raw in fields.items() if name not in _NOT_FORWARDED}
    body["model"] = request.model
    body["messages"] = _system(request.system) + [message for turn in request.messages for message in _turn(turn)]
    if request.tools:
        body["tools"] = [_tool(tool) for tool in request.tools]
        body |= _tool_choice(request.tool_choice or {})
    form = (request.output_config or {}).get("format")
    schema = form.get("schema") if isinstance(form, dict) else None
    if isinstance(schema, dict):
        format_ = {"name": "answer", "schema": schema, "strict": True}
        body["response_format"] = {"type": "json_schema", "json_schema": format_}
    if isinstance(request, MessagesRequest):
        body["max_tokens"] = request.max_tokens
        body["stream"] = bool(request.stream)
        if request.stop_sequences:
            body["stop"] = request.stop_sequences
        user = (request.metadata or {}).get("user_id")
        if isinstance(user, str):
            body["user"] = user
    return body


def _system(system: str | list[Block] | None) -> list[dict[str, Any]]:
    text = system if isinstance(system, str) else "\n\n".join(map(_text, system or ()))
    return [{"role": "system", "content": text}] if text else []


def _turn(turn: Turn) -> list[dict[str, Any]]:
    """One turn as the messages it makes: each result of a tool is one of its own, before what else was said."""
    if isinstance(turn.content, str):
        return [{"role": turn.role, "content": turn.content}]
    if turn.role == "assistant":
        return [_assistant(turn.content)]
    messages: list[dict[str, Any]] = []
    parts: list[dict[str, Any]] = []
    for block in turn.content:
        if block.get("type") == "tool_result":
            message, pictures = _tool_result(block)
            messages.append(message)
            parts += pictures
        else:
            parts += _parts(block)
    if parts or not messages:
        messages.append({"role": turn.role, "content": _plain(parts)})
    return messages


def _assistant(blocks: list[Block]) -> dict[str, Any]:
    parts: list[dict[str, Any]] = []
    calls: list[dict[str, Any]] = []
    for block in blocks:
        kind = block.get("type")
        if kind == "tool_use":
            function = {"name": block.get("name"), "arguments": _encode(block.get("input") or {}).decode()}
            calls.append({"id": block.get("id"), "type": "function", "function": function})
        elif not (kind in _SERVER_BLOCKS or str(kind).endswith("_tool_result")):
            parts += _parts(block)
    message: dict[str, Any] = {"role": "assistant", "content": _plain(parts) if parts else None}
    if calls:
        message["tool_calls"] = calls
    elif not parts:
        # A turn of thoughts alone: OpenAI's dialect wants words where there are no calls.
        message["content"] = ""
    return message


def _tool_result(block: Block) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The result as a message, and its pictures, which a tool's message can't hold."""
    content = block.get("content")
    blocks = [{"type": "text", "text": content}] if isinstance(content, str) else _members(content)
    parts = [part for item in blocks for part in _parts(item)]
    text = "\n".join(part["text"] for part in parts if part.get("type") == "text")
    if block.get("is_error"):
        text = f"Error: {text}"
    message = {"role": "tool", "tool_call_id": block.get("tool_use_id"), "content": text}
    return message, [part for part in parts if part.get("type") != "text"]


def _parts(block: Block) -> list[dict[str, Any]]:
    """A block of content as the parts that say the same."""
    kind = block.get("type")
    if kind == "text":
        return [{"type": "text", "text": _text(block)}]
    source = block.get("source")
    if kind == "image" and isinstance(source, dict) and (url := _address(source)):
        return [{"type": "image_url", "image_url": {"url": url}}]
    if kind == "document" and isinstance(source, dict):
        return _document(block, source)
    if kind == "search_result":
        texts = [_text(item) for item in _members(block.get("content"))]
        return [{"type": "text", "text": "\n".join([str(block.get("title")), str(source), *texts])}]
    return [block]


def _document(block: Block, source: dict[str, Any]) -> list[dict[str, Any]]:
    kind, content = source.get("type"), source.get("content")
    if kind == "text" and isinstance(source.get("data"), str):
        title = block.get("title")
        return [{"type": "text", "text": f"{title}\n{source['data']}" if title else source["data"]}]
    if kind == "content" and isinstance(content, str):
        return [{"type": "text", "text": content}]
    if kind == "content" and isinstance(content, list):
        return [part for item in _members(content) for part in _parts(item)]
    if kind == "base64" and (url := _address(source)):
        return [{"type": "file", "file": {"filename": str(block.get("title") or "document"), "file_data": url}}]
    return [block]


def _address(source: dict[str, Any]) -> str:
    if source.get("type") == "base64" and isinstance(source.get("data"), str):
        return f"data:{source.get('media_type')};base64,{source['data']}"
    return str(source["url"]) if source.get("type") == "url" and isinstance(source.get("url"), str) else ""


def _plain(parts: list[dict[str, Any]]) -> str | list[dict[str, Any]]:
    """Text alone as a string, which every server reads; many small ones know no parts."""
    if all(part.get("type") == "text" for part in parts):
        return "\n".join(part["text"] for part in parts)
    return parts


def _tool(tool: dict[str, Any]) -> dict[str, Any]:
    if "input_schema" not in tool:
        # One that Anthropic's servers run themselves.
        return tool
    function = {"name": tool.get("name"), "parameters": tool["input_schema"]}
    function |= {name: tool[name] for name in ("description", "strict") if tool.get(name) is not None}
    return {"type": "function", "function": function}


def _tool_choice(choice: dict[str, Any]) -> dict[str, Any]:
    out: dict[str, Any] = {}
    kind = choice.get("type")
    if kind == "tool":
        out["tool_choice"] = {"type": "function", "function": {"name": choice.get("name")}}
    elif kind in _CHOICES:
        out["tool_choice"] = _CHOICES[kind]
    if choice.get("disable_parallel_tool_use"):
        out["parallel_tool_calls"] = False
    return out


def _members(content: Any) -> list[Block]:
    """The blocks of a list; nothing of what is none."""
    return [item for item in content if isinstance(item, dict)] if isinstance(content, list) else []


def _text(block: Block) -> str:
    text = block.get("text")
    return text if isinstance(text, str) else ""
