"""A request in OpenAI's Responses dialect as the chat request that every language model here takes.

Members that neither dialect is known to have are kept: an upstream may know them. What can't be done over a chat is
refused by name and never left out, but for hints whose absence changes nothing a caller could notice.

Source: OpenAI API reference (create a response; create a chat completion), as of 2026-11.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from modelport.dialect.responses.input import messages_of
from modelport.errors import BadRequest
from modelport.requests import ResponsesRequest

_encode = msgspec.json.Encoder().encode

# Known members that have no counterpart of the same name and meaning in a chat.
_TRANSLATED = frozenset(
    {"input", "instructions", "max_output_tokens", "tools", "tool_choice", "text", "reasoning", "include"}
    | {"top_logprobs", "truncation", "store", "previous_response_id", "background", "stream_options"}
)
# What would need something that is kept or run on the server, and what to do instead.
_REFUSED = {
    "previous_response_id": "Responses are not kept here: send the earlier items in 'input'.",
    "conversation": "Conversations are not kept here: send the earlier items in 'input'.",
    "background": "Responses run while the caller waits: leave 'background' out, or stream.",
    "prompt": "Prompt templates are not kept here: send their text in 'instructions' and 'input'.",
    "context_management": "Nothing is compacted here: send the items that the model is to see in 'input'.",
    "moderation": "Nothing is moderated here: leave 'moderation' out.",
}
# Members of a chat that would contradict those of a response.
_OF_CHATS = {
    "messages": "input",
    "max_tokens": "max_output_tokens",
    "max_completion_tokens": "max_output_tokens",
    "response_format": "text.format",
    "reasoning_effort": "reasoning.effort",
    "verbosity": "text.verbosity",
    "logprobs": "include",
    "functions": "tools",
    "function_call": "tool_choice",
    "n": "several calls",
}
LOGPROBS = "message.output_text.logprobs"


def chat_body(request: ResponsesRequest, fields: Mapping[str, msgspec.Raw]) -> bytes:
    """The body of the chat to be run. `fields` are the members of the response's own body as they were sent.

    Raises: BadRequest that names the member as the caller knows it.
    """
    _refuse(request, fields)
    members: dict[str, Any] = {
        "messages": messages_of(request.input, instructions=request.instructions),
        "max_completion_tokens": request.max_output_tokens,
        "tools": [_tool(tool, place) for place, tool in enumerate(request.tools)] if request.tools else None,
        "tool_choice": _tool_choice(request.tool_choice),
        **_text(request.text),
        **_reasoning(request.reasoning),
        **_logprobs(request),
    }
    kept = {name: raw for name, raw in fields.items() if name not in _TRANSLATED}
    return _encode(kept | {name: value for name, value in members.items() if value is not None})


def chat_param(param: str | None) -> str | None:
    """The member of a response that a refused member of its chat came from."""
    if param is None:
        return None
    name = param.replace("[", ".").split(".", 1)[0]
    return {"messages": "input", "response_format": "text.format"}.get(name) or _OF_CHATS.get(name, param)


def _refuse(request: ResponsesRequest, fields: Mapping[str, msgspec.Raw]) -> None:
    for name, advice in _REFUSED.items():
        if name in fields and bytes(fields[name]) not in (b"null", b"false"):
            raise BadRequest(advice, param=name)
    for name, instead in _OF_CHATS.items():
        if name in fields:
            raise BadRequest(f"A response has no {name!r}: use {instead}.", param=name)
    if request.reasoning and request.reasoning.get("mode") not in (None, "standard"):
        raise BadRequest("The only mode of reasoning here is 'standard'.", param="reasoning.mode")


def _tool(tool: dict[str, Any], place: int) -> dict[str, Any]:
    kind = tool.get("type")
    if kind != "function":
        raise BadRequest(
            f"Tools of type {str(kind)[:40]!r} are not run here. Those of type 'function' are supported: the model "
            "asks for a call, your program answers it.",
            param=f"tools[{place}].type",
        )
    name = tool.get("name")
    if not isinstance(name, str) or not name:
        raise BadRequest("A function has a name.", param=f"tools[{place}].name")
    return {"type": "function", "function": {key: value for key, value in tool.items() if key != "type"}}


def _tool_choice(choice: str | dict[str, Any] | None) -> Any:
    if choice is None or choice in ("none", "auto", "required"):
        return choice
    if isinstance(choice, dict):
        kind, name = choice.get("type"), choice.get("name")
        if kind == "function" and isinstance(name, str):
            return {"type": "function", "function": {"name": name}}
        tools = choice.get("tools")
        if kind == "allowed_tools" and isinstance(tools, list):
            names = [tool.get("name") if isinstance(tool, dict) else None for tool in tools]
            if all(isinstance(name, str) for name in names):
                allowed = [{"type": "function", "function": {"name": name}} for name in names]
                return {
                    "type": "allowed_tools",
                    "allowed_tools": {"mode": choice.get("mode", "auto"), "tools": allowed},
                }
    raise BadRequest(
        "tool_choice is 'none', 'auto', 'required', or an object of type 'function' or 'allowed_tools' that names "
        "functions.",
        param="tool_choice",
    )


def _text(text: dict[str, Any] | None) -> dict[str, Any]:
    """`response_format` and `verbosity`."""
    if not text:
        return {}
    form = text.get("format") or {"type": "text"}
    kind = form.get("type") if isinstance(form, dict) else None
    chat = {"verbosity": text.get("verbosity")}
    if kind == "json_object":
        chat["response_format"] = form
    elif kind == "json_schema":
        schema = {name: value for name, value in form.items() if name != "type"}
        chat["response_format"] = {"type": kind, "json_schema": schema}
    elif kind != "text":
        raise BadRequest("text.format is of type 'text', 'json_object' or 'json_schema'.", param="text.format")
    return chat


def _reasoning(reasoning: dict[str, Any] | None) -> dict[str, Any]:
    return {"reasoning_effort": reasoning.get("effort")} if reasoning else {}


def _logprobs(request: ResponsesRequest) -> dict[str, Any]:
    if not request.top_logprobs and LOGPROBS not in (request.include or ()):
        return {}
    return {"logprobs": True, "top_logprobs": request.top_logprobs}
