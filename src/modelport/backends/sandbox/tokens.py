"""The sandbox's tokens: simple enough to count by hand, and lossless: joined, they are the text again.

A token is a word or one punctuation sign, with the white space before it; white space at the end is one more.
"""

from __future__ import annotations

import re
from typing import Any

import msgspec

from modelport.calls import Call, Operation

# A message's role and a picture's content, so that no part of a request is free.
TOKENS_PER_MESSAGE = 3
TOKENS_PER_ATTACHMENT = 85

_TOKEN = re.compile(r"\s*(?:\w+|[^\w\s])|\s+")


def split_tokens(text: str) -> list[str]:
    """The tokens of `text`, in order."""
    return _TOKEN.findall(text)


def count_tokens(text: str) -> int:
    return sum(1 for _ in _TOKEN.finditer(text))


def count_input(call: Call) -> int:
    """The exact input tokens of `call`; 0 for predictions."""
    if call.operation is Operation.CHAT:
        tools = call.request.tools
        return sum(map(_count_message, call.request.messages)) + (_count_json(tools) if tools else 0)
    if call.operation is Operation.COMPLETION:
        return sum(map(_count_prompt, prompts_of(call.request.prompt)))
    if call.operation is Operation.EMBEDDING:
        return sum(map(_count_prompt, prompts_of(call.request.input)))
    return 0


def prompts_of(value: str | list[Any]) -> list[str | list[int]]:
    """One prompt or several, each a text or token ids, as a list of prompts."""
    if isinstance(value, str) or (value and all(isinstance(item, int) for item in value)):
        return [value]
    return [[item] if isinstance(item, int) else item for item in value]


def text_of(content: str | list[dict[str, Any]] | None) -> str:
    """The text of a message's content; of a list, its text parts joined by line feeds."""
    if isinstance(content, list):
        return "\n".join(part["text"] for part in content if isinstance(part.get("text"), str))
    return content or ""


def _count_message(message: Any) -> int:
    count = TOKENS_PER_MESSAGE + count_tokens(text_of(message.content))
    if isinstance(message.content, list):
        count += TOKENS_PER_ATTACHMENT * sum("text" not in part for part in message.content)
    if message.tool_calls:
        count += _count_json(message.tool_calls)
    return count


def _count_prompt(prompt: str | list[int]) -> int:
    return count_tokens(prompt) if isinstance(prompt, str) else len(prompt)


def _count_json(value: Any) -> int:
    return count_tokens(msgspec.json.encode(value).decode())
