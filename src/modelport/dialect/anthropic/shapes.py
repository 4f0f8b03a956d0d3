"""The typed view of a Messages request: what the platform itself reads of it.

Members that are not named here are no error; blocks of content stay as they came, since new kinds appear often.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from modelport.errors import BadRequest
from modelport.requests import ModelName

# The name of the dialect in `Call.original`.
DIALECT = "anthropic"
# The oldest version that streams as we do, and the first one without sampling parameters.
CLASSIC_VERSION = "2023-06-01"
STRICT_VERSION = "2026-10-21"
VERSIONS = (CLASSIC_VERSION, STRICT_VERSION)
# As many as a chat may have; an upstream of Anthropic's own would take more.
MAX_STOP_SEQUENCES = 16

Block = dict[str, Any]
_Content = str | list[Block]
_SAMPLING = ("temperature", "top_p", "top_k")


class Turn(msgspec.Struct):
    """One message. `system` is a role since 2026."""

    role: Literal["user", "assistant", "system"]
    content: _Content


class CountTokensRequest(msgspec.Struct, kw_only=True):
    """What decides over the length of a prompt."""

    model: ModelName
    messages: Annotated[list[Turn], Meta(min_length=1)]
    system: _Content | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: dict[str, Any] | None = None
    thinking: dict[str, Any] | None = None
    output_config: dict[str, Any] | None = None
    temperature: Annotated[float, Meta(ge=0, le=1)] | None = None
    top_p: Annotated[float, Meta(ge=0, le=1)] | None = None
    top_k: Annotated[int, Meta(ge=0)] | None = None


class MessagesRequest(CountTokensRequest, kw_only=True):
    max_tokens: Annotated[int, Meta(ge=1)]
    stop_sequences: Annotated[list[str], Meta(max_length=MAX_STOP_SEQUENCES)] | None = None
    stream: bool | None = None
    metadata: dict[str, Any] | None = None


def read_version(header: str | None) -> str:
    """The version that a request is written in; the oldest where it names none, as plain HTTP clients do.

    Raises: BadRequest for one that nobody knows.
    """
    version = header or CLASSIC_VERSION
    if version not in VERSIONS:
        raise BadRequest(f"anthropic-version: {version[:40]!r} is not known here; send one of {', '.join(VERSIONS)}.")
    return version


def check_version(request: CountTokensRequest, version: str) -> None:
    """Raises: BadRequest for what the version no longer allows, even at its default value.

    Source: the migration guide of 2026-10-21: no sampling parameters, no documents in an assistant's message, no
    citations on a user's texts.
    """
    if version < STRICT_VERSION:
        return
    for name in _SAMPLING:
        if getattr(request, name) is not None:
            raise BadRequest(f"{name}: not permitted in version {version}; leave it out.", param=name)
    for index, turn in enumerate(request.messages):
        for place, block in enumerate(turn.content if isinstance(turn.content, list) else ()):
            kind = block.get("type")
            where = f"messages.{index}.content.{place}"
            if turn.role == "assistant" and kind == "document":
                raise BadRequest(f"{where}: an assistant's message can't hold a document.", param=where)
            if turn.role == "user" and kind == "text" and block.get("citations"):
                raise BadRequest(f"{where}.citations: a user's text can't hold citations.", param=where)
