"""The input of a response, text or items, as the messages of a chat.

A chat keeps the calls of an assistant's turn in the message that asked for them; a response has an item for each. So
what an assistant said and the calls that follow it become one message.
"""

from __future__ import annotations

from typing import Any

from modelport.errors import BadRequest

_ROLES = ("user", "assistant", "system", "developer")


def messages_of(items: str | list[dict[str, Any]], *, instructions: str | None) -> list[dict[str, Any]]:
    """The messages, in order. Raises: BadRequest that names the item."""
    messages: list[dict[str, Any]] = []
    if instructions:
        # Every server knows `system`; OpenAI's own takes it for `developer`.
        messages.append({"role": "system", "content": instructions})
    if isinstance(items, str):
        return [*messages, {"role": "user", "content": items}]
    for place, item in enumerate(items):
        _add(messages, item, f"input[{place}]")
    if not any(message["role"] != "system" for message in messages):
        raise BadRequest("The input has nothing for the model to answer.", param="input")
    return messages


def _add(messages: list[dict[str, Any]], item: dict[str, Any], at: str) -> None:
    kind = item.get("type") or "message"
    if kind == "message":
        messages.append(_message(item, at))
    elif kind == "function_call":
        _turn(messages).setdefault("tool_calls", []).append(_call(item, at))
    elif kind == "function_call_output":
        call_id = _text_member(item, "call_id", at)
        messages.append({"role": "tool", "tool_call_id": call_id, "content": _output(item.get("output"), at)})
    elif kind != "reasoning":
        # What a model thought in an earlier turn has no place in a chat, and models are trained without it.
        raise BadRequest(
            f"Items of type {str(kind)[:40]!r} are not supported. Those that are: 'message', 'function_call', "
            "'function_call_output' and 'reasoning'.",
            param=f"{at}.type",
        )


def _turn(messages: list[dict[str, Any]]) -> dict[str, Any]:
    """The assistant's message that a call belongs to: the last one, or a new one."""
    if not messages or messages[-1]["role"] != "assistant":
        messages.append({"role": "assistant", "content": None})
    return messages[-1]


def _message(item: dict[str, Any], at: str) -> dict[str, Any]:
    role = item.get("role")
    if role not in _ROLES:
        raise BadRequest(f"The role of a message is one of {', '.join(_ROLES)}.", param=f"{at}.role")
    return {"role": role, "content": _content(item.get("content"), f"{at}.content")}


def _call(item: dict[str, Any], at: str) -> dict[str, Any]:
    function = {"name": _text_member(item, "name", at), "arguments": _text_member(item, "arguments", at)}
    return {"id": _text_member(item, "call_id", at), "type": "function", "function": function}


def _output(output: Any, at: str) -> str | list[dict[str, Any]]:
    content = _content(output, f"{at}.output")
    if isinstance(content, list) and any(part["type"] != "text" for part in content):
        raise BadRequest("The output of a function is text here.", param=f"{at}.output")
    return content


def _content(content: Any, at: str) -> str | list[dict[str, Any]]:
    """A message's content. One part of text is written as the plain string that every server takes."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list) or not all(isinstance(part, dict) for part in content):
        raise BadRequest("Content is a text or a list of parts.", param=at)
    parts = [_part(part, f"{at}[{place}]") for place, part in enumerate(content)]
    return str(parts[0]["text"]) if len(parts) == 1 and parts[0]["type"] == "text" else parts


def _part(part: dict[str, Any], at: str) -> dict[str, Any]:
    kind = part.get("type")
    if kind in ("input_text", "output_text", "text"):
        return {"type": "text", "text": _text_member(part, "text", at)}
    if kind == "refusal":
        return {"type": "refusal", "refusal": _text_member(part, "refusal", at)}
    if kind == "input_image":
        image = {"url": _text_member(part, "image_url", at)}
        # `auto` is what leaving it out means, and other servers know fewer words.
        return {"type": "image_url", "image_url": _with(image, detail=part.get("detail"), unless="auto")}
    if kind == "input_file":
        file = {"file_data": _text_member(part, "file_data", at)}
        return {"type": "file", "file": _with(file, filename=part.get("filename"))}
    if kind == "input_audio" and isinstance(part.get("input_audio"), dict):
        return {"type": "input_audio", "input_audio": part["input_audio"]}
    raise BadRequest(
        f"Parts of type {str(kind)[:40]!r} are not supported. Those that are: 'input_text', 'input_image' with an "
        "image_url, 'input_file' with file_data, 'input_audio', 'output_text' and 'refusal'.",
        param=f"{at}.type",
    )


def _with(body: dict[str, Any], *, unless: str | None = None, **members: Any) -> dict[str, Any]:
    return body | {name: value for name, value in members.items() if value is not None and value != unless}


def _text_member(holder: dict[str, Any], name: str, at: str) -> str:
    value = holder.get(name)
    if not isinstance(value, str):
        raise BadRequest(f"{name} is missing, or is no text.", param=f"{at}.{name}")
    return value
