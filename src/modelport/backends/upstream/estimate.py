"""How many input tokens a call to an upstream will probably have: an upper-ish bound, made in microseconds.

The upstream's tokenizer is unknown here. English averages four bytes a token and other scripts about three, so a
third of the bytes is rarely too few; what an upstream reports replaces the estimate when the call is settled.
"""

from __future__ import annotations

from typing import Any

import msgspec

from modelport.calls import Call, Operation
from modelport.requests import Message

BYTES_PER_TOKEN = 3
# Role, separators and the like, as in OpenAI's own counting recipe, rounded up.
TOKENS_PER_MESSAGE = 4
# A picture, recording or file in a data URL: what a picture in high detail costs at OpenAI (765 to 1,105).
TOKENS_PER_ATTACHMENT = 1_100

# Where the parts of a message hold base64, which would count a thousandfold by its bytes.
_ATTACHMENTS = {"image_url": "url", "input_audio": "data", "file": "file_data"}
_OF_CHATS = ("messages", "tools", "functions", "response_format")


def estimate_input(call: Call) -> int:
    """Input tokens of `call`; 0 for operations without tokens."""
    if call.operation is Operation.CHAT:
        return _chat(call)
    if call.operation is Operation.COMPLETION:
        return _texts(call, "prompt", call.request.prompt)
    if call.operation is Operation.EMBEDDING:
        return _texts(call, "input", call.request.input)
    return 0


def _chat(call: Call) -> int:
    messages: list[Message] = call.request.messages
    fields, size_bytes = call.fields, 0
    for name in _OF_CHATS:
        raw = fields.get(name)
        if raw is not None:
            size_bytes += len(raw)
    tokens = TOKENS_PER_MESSAGE * len(messages)
    for message in messages:
        if isinstance(message.content, list):
            attached = [size for part in message.content if (size := _attachment_bytes(part)) is not None]
            tokens += TOKENS_PER_ATTACHMENT * len(attached)
            size_bytes -= sum(attached)
    return tokens + _tokens(size_bytes)


def _attachment_bytes(part: dict[str, Any]) -> int | None:
    """Bytes of the part's attachment, of which the estimate takes no notice; None where it has none."""
    kind = part.get("type")
    member = _ATTACHMENTS.get(kind) if isinstance(kind, str) else None
    if kind is None or member is None:
        return None
    holder = part.get(kind)
    content = holder.get(member) if isinstance(holder, dict) else holder
    return len(content) if isinstance(content, str) else 0


def _texts(call: Call, name: str, value: str | list[Any]) -> int:
    """Tokens of a text, of texts, or of inputs that are token ids already."""
    if isinstance(value, list) and all(isinstance(item, int) for item in value):
        return len(value)
    if isinstance(value, list) and all(isinstance(item, list) for item in value):
        return sum(len(ids) for ids in value)
    return _tokens(_size_bytes(call, name))


def _size_bytes(call: Call, name: str) -> int:
    raw: msgspec.Raw | None = call.fields.get(name)
    return len(raw) if raw is not None else 0


def _tokens(size_bytes: int) -> int:
    return -(-max(size_bytes, 0) // BYTES_PER_TOKEN)
