"""The parts of a chat's message as parts of a Gemini content."""

from __future__ import annotations

import mimetypes
import re
from typing import Any

from modelport.errors import BadRequest

_DATA_URL = re.compile(r"data:([\w.+-]+/[\w.+-]+)(?:;[^,;]*)*;base64,(.*)", re.S)


def parts_of(content: str | list[dict[str, Any]] | None, where: str) -> list[dict[str, Any]]:
    """A message's content as parts; empty where it has none. Raises: BadRequest."""
    if isinstance(content, str):
        return [{"text": content}] if content else []
    return [_part(part, f"{where}.content[{index}]") for index, part in enumerate(content or ())]


def _part(part: dict[str, Any], where: str) -> dict[str, Any]:
    kind = part.get("type")
    value = part.get(kind) if isinstance(kind, str) else None
    if kind in ("text", "refusal") and isinstance(value, str):
        return {"text": value}
    if isinstance(value, dict):
        if kind == "image_url" and isinstance(value.get("url"), str):
            return _at(value["url"], where)
        if kind == "input_audio" and isinstance(value.get("data"), str):
            return {"inlineData": {"mimeType": f"audio/{value.get('format') or 'wav'}", "data": value["data"]}}
        if kind == "file" and isinstance(value.get("file_data"), str):
            return _at(value["file_data"], where)
    raise BadRequest(f"This model takes no part of type {str(kind)[:40]!r} like this.", param=where)


def _at(url: str, where: str) -> dict[str, Any]:
    """What lies at an address: in a data URL itself, or where Gemini is to fetch it."""
    inline = _DATA_URL.fullmatch(url)
    if inline is not None:
        return {"inlineData": {"mimeType": inline[1], "data": inline[2]}}
    if not url.startswith(("http://", "https://", "gs://")):
        raise BadRequest("An attachment is a base64 data URL or an address.", param=where)
    kind, _ = mimetypes.guess_type(url)
    return {"fileData": {"fileUri": url, **({"mimeType": kind} if kind else {})}}
