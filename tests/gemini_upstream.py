"""What Google's Gemini API answers, for the server of `tests.upstream`."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

from tests.upstream import Step, chunk, head, json_answer, raw

USAGE = {"promptTokenCount": 7, "candidatesTokenCount": 3, "totalTokenCount": 10}


def candidate(*parts: Any, finish: str | None = None, **members: Any) -> dict[str, Any]:
    """One candidate; a part that is a text stands for itself."""
    made = [{"text": part} if isinstance(part, str) else part for part in parts]
    body: dict[str, Any] = {"content": {"role": "model", "parts": made}, **members}
    return body | ({"finishReason": finish} if finish else {})


def content(*candidates: Any, usage: Any = USAGE, **members: Any) -> dict[str, Any]:
    """A GenerateContentResponse."""
    return {"candidates": list(candidates), "usageMetadata": usage, "modelVersion": "gemini-3-x", **members}


def call(name: str, args: Any, **members: Any) -> dict[str, Any]:
    return {"functionCall": {"name": name, "args": args}, **members}


def stream(*events: Any, end: bool = True) -> Step:
    """The events as Google writes them, one read each; without `end` the connection breaks off behind them."""
    parts: Iterable[bytes] = (b"data: " + json.dumps(event).encode() + b"\r\n\r\n" for event in events)
    opening = head(200, content_type="text/event-stream", transfer_encoding="chunked")
    return raw(opening, *(chunk(part) for part in parts), *([b"0\r\n\r\n"] if end else []), close=not end)


def refused(code: int, status: str, message: str = "No.", *, details: Any = (), **headers: str | int) -> Step:
    error = {"code": code, "message": message, "status": status, "details": list(details)}
    return json_answer({"error": error}, code, **headers)
