"""A chat request as a Messages request, for upstreams that speak Anthropic's dialect.

What would change the answer and has no counterpart there is refused by name; hints that a model may ignore anyway
(`seed`, `user` beside `metadata`) are left out. Members that OpenAI does not know are passed on.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from modelport.errors import BadRequest
from modelport.requests import ChatRequest, Message

# OpenAI's members: translated below, refused below, or of no use to another dialect.
_OPENAIS_OWN = frozenset(
    {
        "model", "messages", "max_tokens", "max_completion_tokens", "stream", "stream_options", "n", "temperature",
        "top_p", "frequency_penalty", "presence_penalty", "seed", "stop", "logit_bias", "user", "metadata", "logprobs",
        "top_logprobs", "tools", "tool_choice", "parallel_tool_calls", "response_format", "reasoning_effort",
        "safety_identifier", "prompt_cache_key", "prompt_cache_retention", "service_tier", "store", "verbosity",
        "modalities", "audio", "prediction", "functions", "function_call", "web_search_options",
    }
)  # fmt: skip
# Asked for, these make another answer than Anthropic's models can give.
_REFUSED = ("logprobs", "logit_bias", "frequency_penalty", "presence_penalty")
_REFUSED_RAW = ("audio", "functions", "function_call", "web_search_options")
_EFFORTS = {"minimal": "low", "low": "low", "medium": "medium", "high": "high", "xhigh": "xhigh"}
_CHOICES = {"auto": "auto", "required": "any", "none": "none"}
_ANY_OBJECT = "Answer with one JSON object and nothing else."
_decode = msgspec.json.Decoder().decode


def to_messages(
    request: ChatRequest, fields: Mapping[str, msgspec.Raw], *, model: str, max_tokens: int
) -> dict[str, Any]:
    """The body of the Messages request. Raises: BadRequest that names what can't be said there."""
    _check(request, fields)
    body: dict[str, Any] = {name: raw for name, raw in fields.items() if name not in _OPENAIS_OWN}
    system, messages = _conversation(request.messages)
    body |= {"model": model, "max_tokens": max_tokens, "messages": messages, "stream": bool(request.stream)}
    if request.temperature is not None:
        # OpenAI's scale ends at 2.
        body["temperature"] = min(request.temperature, 1.0)
    if request.top_p is not None:
        body["top_p"] = request.top_p
    if request.stop:
        body["stop_sequences"] = [request.stop] if isinstance(request.stop, str) else request.stop
    user = request.user or (request.metadata or {}).get("user_id")
    if isinstance(user, str):
        body["metadata"] = {"user_id": user}
    body |= _tools(request)
    output = _output_config(request, fields)
    if output:
        body["output_config"] = output
    elif (request.response_format or {}).get("type") == "json_object":
        system.append(_ANY_OBJECT)
    if system:
        body["system"] = "\n\n".join(system)
    return body


def _check(request: ChatRequest, fields: Mapping[str, msgspec.Raw]) -> None:
    asked = [name for name in _REFUSED if getattr(request, name)]
    asked += [name for name in _REFUSED_RAW if bytes(fields.get(name, b"null")) != b"null"]
    if (request.n or 1) > 1:
        asked.append("n")
    if asked:
        raise BadRequest(f"This model's server has no {asked[0]!r}; leave it out.", param=asked[0])


def _conversation(messages: list[Message]) -> tuple[list[str], list[dict[str, Any]]]:
    """The system prompts, and the turns. Neighbours of one role become one turn, as results of tools have to."""
    system: list[str] = []
    turns: list[dict[str, Any]] = []
    for index, message in enumerate(messages):
        where = f"messages[{index}]"
        if message.role in ("system", "developer"):
            system += [block["text"] for block in _blocks(message.content, where) if block["type"] == "text"]
            continue
        role, blocks = _turn(message, where)
        if turns and turns[-1]["role"] == role:
            turns[-1]["content"] += blocks
        elif blocks:
            turns.append({"role": role, "content": blocks})
    return system, turns


def _turn(message: Message, where: str) -> tuple[str, list[dict[str, Any]]]:
    blocks = _blocks(message.content, where)
    if message.role == "tool":
        return "user", [{"type": "tool_result", "tool_use_id": message.tool_call_id or "", "content": blocks}]
    if message.role == "assistant":
        return "assistant", blocks + [_tool_use(call, where) for call in message.tool_calls or ()]
    if message.role == "function":
        raise BadRequest("Results of functions are sent with role 'tool' here.", param=f"{where}.role")
    return "user", blocks


def _tool_use(call: dict[str, Any], where: str) -> dict[str, Any]:
    function = call.get("function")
    name = function.get("name") if isinstance(function, dict) else None
    if not isinstance(function, dict) or not isinstance(name, str):
        raise BadRequest("A tool call has a function with a name.", param=f"{where}.tool_calls")
    arguments = function.get("arguments") or "{}"
    try:
        value = _decode(arguments) if isinstance(arguments, str) else arguments
    except msgspec.DecodeError:
        value = None
    if not isinstance(value, dict):
        raise BadRequest("A tool call's arguments are a JSON object.", param=f"{where}.tool_calls")
    return {"type": "tool_use", "id": str(call.get("id")), "name": name, "input": value}


def _blocks(content: str | list[dict[str, Any]] | None, where: str) -> list[dict[str, Any]]:
    if isinstance(content, str):
        # Anthropic refuses texts without a letter.
        return [{"type": "text", "text": content}] if content else []
    return [_block(part, f"{where}.content[{index}]") for index, part in enumerate(content or ())]


def _block(part: dict[str, Any], where: str) -> dict[str, Any]:
    kind = part.get("type")
    extra = {"cache_control": part["cache_control"]} if "cache_control" in part else {}
    if kind in ("text", "refusal") and isinstance(part.get(kind), str):
        return {"type": "text", "text": part[kind], **extra}
    holder = part.get(kind) if isinstance(kind, str) else None
    if kind == "image_url":
        url = holder.get("url") if isinstance(holder, dict) else holder
        if isinstance(url, str):
            return {"type": "image", "source": _source(url), **extra}
    if kind == "file" and isinstance(holder, dict) and isinstance(holder.get("file_data"), str):
        title = {"title": holder["filename"]} if isinstance(holder.get("filename"), str) else {}
        return {"type": "document", "source": _source(holder["file_data"]), **title, **extra}
    if kind in ("image", "document", "search_result"):
        # Already a block of Anthropic's, from a caller who knows whom it goes to.
        return part
    raise BadRequest(f"This model's server reads no part of type {str(kind)[:40]!r}.", param=where)


def _source(url: str) -> dict[str, Any]:
    """Where the bytes are: in the data URL itself (RFC 2397), or at the address."""
    head, comma, data = url.partition(",")
    if head.startswith("data:") and comma:
        media_type, _, coding = head[5:].rpartition(";")
        if coding == "base64":
            return {"type": "base64", "media_type": media_type.partition(";")[0], "data": data}
    return {"type": "url", "url": url}


def _tools(request: ChatRequest) -> dict[str, Any]:
    if not request.tools:
        return {}
    choice = _tool_choice(request.tool_choice)
    tools = [_tool(tool, index) for index, tool in enumerate(request.tools)]
    allowed = choice.pop("allowed", None)
    if allowed is not None:
        tools = [tool for tool in tools if tool.get("name") in allowed]
    if request.parallel_tool_calls is False and choice.get("type") != "none":
        choice = {"type": "auto", **choice, "disable_parallel_tool_use": True}
    return {"tools": tools, "tool_choice": choice} if choice else {"tools": tools}


def _tool(tool: dict[str, Any], index: int) -> dict[str, Any]:
    function = tool.get("function")
    if tool.get("type", "function") != "function":
        # One that the upstream runs itself, from a caller who knows whom it goes to.
        return tool
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise BadRequest("A tool has a function with a name.", param=f"tools[{index}].function.name")
    schema = function.get("parameters") or {"properties": {}}
    if not isinstance(schema, dict):
        raise BadRequest("A function's parameters are a JSON schema.", param=f"tools[{index}].function.parameters")
    out = {"name": function["name"], "input_schema": {"type": "object", **schema}}
    return out | {name: function[name] for name in ("description", "strict") if function.get(name) is not None}


def _tool_choice(choice: str | dict[str, Any] | None) -> dict[str, Any]:
    if choice is None:
        return {}
    if isinstance(choice, str) and choice in _CHOICES:
        return {"type": _CHOICES[choice]}
    if isinstance(choice, dict) and choice.get("type") == "allowed_tools":
        allowed = choice.get("allowed_tools")
        tools = allowed.get("tools") if isinstance(allowed, dict) else None
        if isinstance(allowed, dict) and isinstance(tools, list):
            kind = "any" if allowed.get("mode") == "required" else "auto"
            return {"type": kind, "allowed": {_name(tool) for tool in tools}}
    if isinstance(choice, dict) and _name(choice):
        return {"type": "tool", "name": _name(choice)}
    raise BadRequest("tool_choice is none, auto, required, or names a function of tools.", param="tool_choice")


def _name(item: Any) -> str:
    function = item.get("function") if isinstance(item, dict) else None
    name = function.get("name") if isinstance(function, dict) else None
    return name if isinstance(name, str) else ""


def _output_config(request: ChatRequest, fields: Mapping[str, msgspec.Raw]) -> dict[str, Any]:
    output: dict[str, Any] = {}
    wanted = request.response_format or {}
    if wanted.get("type") == "json_schema":
        holder = wanted.get("json_schema")
        schema = holder.get("schema") if isinstance(holder, dict) else None
        if not isinstance(schema, dict):
            raise BadRequest("json_schema has no schema.", param="response_format.json_schema")
        output["format"] = {"type": "json_schema", "schema": schema}
    raw = fields.get("reasoning_effort")
    effort = _decode(raw) if raw is not None else None
    if isinstance(effort, str) and effort in _EFFORTS:
        output["effort"] = _EFFORTS[effort]
    return output
