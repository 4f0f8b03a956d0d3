"""A chat in OpenAI's form as the plain role-and-text messages that a model's template takes."""

from __future__ import annotations

from typing import Any

from modelport.backends.llamacpp.tools import Tools, written
from modelport.errors import BadRequest
from modelport.requests import Message

_SYSTEM = ("system", "developer")


def messages_for(messages: list[Message], *, tools: Tools | None, system_prompt: str) -> list[dict[str, str]]:
    """What the template renders. `system_prompt` is used where the chat has no system message of its own.

    System messages at the beginning become one, with what is to be said about `tools` at its end; results of tools
    become the user's messages, which every template knows. Raises: BadRequest.
    """
    leading = 0
    while leading < len(messages) and messages[leading].role in _SYSTEM:
        leading += 1
    system = [_text(message.content, index) for index, message in enumerate(messages[:leading])]
    system = system or ([system_prompt] if system_prompt else [])
    if tools is not None:
        system.append(tools.prompt)
    out = [{"role": "system", "content": "\n\n".join(system)}] if system else []
    for index, message in enumerate(messages[leading:], leading):
        role, text = _role_and_text(message, index)
        if message.role in ("tool", "function") and out and out[-1]["role"] == "user":
            out[-1]["content"] += f"\n{text}"
        else:
            out.append({"role": role, "content": text})
    return out


def _role_and_text(message: Message, index: int) -> tuple[str, str]:
    text = _text(message.content, index)
    if message.role in _SYSTEM:
        return "system", text
    if message.role in ("tool", "function"):
        return "user", f"<tool_response>\n{text}\n</tool_response>"
    if message.role == "assistant" and message.tool_calls:
        calls = written(message.tool_calls)
        return "assistant", f"{text}\n{calls}" if text else calls
    if message.role == "user" and message.content is None:
        raise BadRequest("A user's message has content.", param=f"messages[{index}].content")
    return message.role, text


def _text(content: str | list[dict[str, Any]] | None, index: int) -> str:
    if isinstance(content, str):
        return content
    texts = []
    for number, part in enumerate(content or ()):
        kind = part.get("type")
        value = part.get(kind) if kind in ("text", "refusal") else None
        if not isinstance(value, str):
            where = f"messages[{index}].content[{number}]"
            raise BadRequest(f"This model reads text only, not a part of type {str(kind)[:40]!r}.", param=where)
        texts.append(value)
    return "\n".join(texts)
