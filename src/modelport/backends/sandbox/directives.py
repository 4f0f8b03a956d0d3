"""What a prompt asks of the sandbox: `[[name]]` and `[[name:value]]`, read into one frozen value.

A directive's name is lower-case letters and underscores, so that `[[1, 2], [3, 4]]` and `[[A Page]]` are just text.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any

from modelport.errors import BadRequest

MAX_TOKENS = 100_000
MAX_DELAY_S = 600.0

_OPENING = re.compile(r"\[\[([a-z_]+)(?=[\]:])")
_DURATION = re.compile(r"(\d{1,9}(?:\.\d{1,6})?)(ms|s)")
_TOOL = re.compile(r"\s*([A-Za-z0-9_.-]{1,64})\s*")

# Name and what it does: also what an error tells, and what the guide's table is checked against.
KNOWN = {
    "echo": "[[echo]] answers with the prompt itself",
    "tokens": "[[tokens:50]] answers with exactly so many tokens",
    "json": "[[json]] answers with a small JSON object",
    "tool": '[[tool:name {"a": 1}]] calls a tool',
    "latency": "[[latency:200ms]] waits before everything",
    "first_token": "[[first_token:300ms]] waits before the first token",
    "per_token": "[[per_token:20ms]] waits between tokens",
    "error": "[[error:429]] or [[error:context_length_exceeded]] fails",
    "cut": "[[cut:5]] breaks off after so many tokens",
    "unbounded": "[[unbounded]] answers past max_tokens, as a broken upstream does",
    "hang": "[[hang]] or [[hang:5]] stops answering at once or after so many tokens",
}


@dataclass(frozen=True, slots=True)
class Directives:
    """All that a request asked for. `text` is what is left of the prompt without its directives."""

    text: str = ""
    echo: bool = False
    json: bool = False
    tokens: int | None = None
    tool: tuple[str, dict[str, Any]] | None = None
    latency_s: float = 0.0
    first_token_s: float = 0.0
    per_token_s: float = 0.0
    error: str | None = None
    cut: int | None = None
    unbounded: bool = False
    hang: int | None = None


def read_directives(prompt: str, beside: str = "") -> Directives:
    """The directives of `prompt` and then those of `beside`; a later one of the same name wins.

    Raises: BadRequest for an unknown directive or a value that makes no sense; it names what is known.
    """
    found: dict[str, Any] = {}
    text = _read(prompt, found)
    _read(beside, found)
    return Directives(text=text.strip(), **found)


def _read(text: str, found: dict[str, Any]) -> str:
    """Read all directives of `text` into `found`; what is left of it."""
    rest, position = [], 0
    while (opening := _OPENING.search(text, position)) is not None:
        rest.append(text[position : opening.start()])
        position = _one(text, opening, found)
    rest.append(text[position:])
    return "".join(rest)


def _one(text: str, opening: re.Match[str], found: dict[str, Any]) -> int:
    """Read one directive into `found`; the position after it."""
    name, start = opening[1], opening.end()
    if name not in KNOWN:
        raise BadRequest(f"The sandbox knows no directive [[{name}]]. It knows: {'; '.join(KNOWN.values())}.")
    if name == "tool":
        found["tool"], start = _tool(text, start)
        end = text.find("]]", start)
        if end != start:
            raise _wrong(name)
        return end + 2
    end = text.find("]]", start)
    if end < 0:
        raise _wrong(name)
    value = text[start:end].removeprefix(":").strip()
    if name in ("echo", "json", "unbounded"):
        if value:
            raise _wrong(name)
        found[name] = True
    elif name in ("latency", "first_token", "per_token"):
        found[f"{name}_s"] = _duration(name, value)
    elif name == "error":
        found[name] = value
    else:
        found[name] = _count(name, value or ("0" if name == "hang" else ""))
    return end + 2


def _tool(text: str, start: int) -> tuple[tuple[str, dict[str, Any]], int]:
    """`:name {arguments}`; the arguments may hold brackets of their own, so JSON's own grammar finds their end."""
    match = _TOOL.match(text, start + 1) if text.startswith(":", start) else None
    if match is None:
        raise _wrong("tool")
    if text.startswith("]]", match.end()):
        return (match[1], {}), match.end()
    try:
        arguments, end = json.JSONDecoder().raw_decode(text, match.end())
    except (ValueError, RecursionError):
        raise _wrong("tool") from None
    if not isinstance(arguments, dict):
        raise _wrong("tool")
    end += len(text[end:]) - len(text[end:].lstrip())
    return (match[1], arguments), end


def _duration(name: str, value: str) -> float:
    match = _DURATION.fullmatch(value)
    seconds = float(match[1]) / (1000 if match[2] == "ms" else 1) if match else -1.0
    if not 0 <= seconds <= MAX_DELAY_S:
        raise _wrong(name)
    return seconds


def _count(name: str, value: str) -> int:
    if not (value.isascii() and value.isdigit() and len(value) < 10 and int(value) <= MAX_TOKENS):
        raise _wrong(name)
    return int(value)


def _wrong(name: str) -> BadRequest:
    return BadRequest(f"The directive [[{name}…]] is not well formed. Write it so: {KNOWN[name]}.")
