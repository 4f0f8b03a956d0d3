"""Protocol Buffers' text format, as far as model configurations use it: names, values, messages and lists.

Source: Text Format Language Specification of Protocol Buffers.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

_TOKEN = re.compile(
    r"""\s+|\#[^\n]*|(?P<text>"(?:[^"\\\n]|\\.)*"|'(?:[^'\\\n]|\\.)*')|(?P<word>[A-Za-z_][\w.]*)"""
    r"""|(?P<number>-?(?:\d+(?:\.\d*)?(?:[eE][+-]?\d+)?))|(?P<mark>[:{}\[\]<>,;])"""
)
_DEEPEST = 32
_CLOSING = {"{": "}", "<": ">"}


class Message:
    """The fields of a message. What has another type than is asked for is as if it were not there."""

    def __init__(self) -> None:
        self.fields: dict[str, list[Any]] = {}

    def text(self, name: str) -> str:
        """A text or an enumerator's name; empty where there is none."""
        return next((value for value in self.fields.get(name, ()) if isinstance(value, str)), "")

    def number(self, name: str) -> int | None:
        return next(iter(self.numbers(name)), None)

    def numbers(self, name: str) -> list[int]:
        return [value for value in self.fields.get(name, ()) if isinstance(value, int)]

    def messages(self, name: str) -> list[Message]:
        return [value for value in self.fields.get(name, ()) if isinstance(value, Message)]


def parse(text: str) -> Message:
    """The message. Raises: ValueError, which says where it stops to be one."""
    return _message(_Tokens(text), closing="", depth=0)


class _Tokens:
    def __init__(self, text: str) -> None:
        self._tokens = _scan(text)
        self.next: tuple[str, str] = ("end", "")
        self.take()

    def take(self) -> tuple[str, str]:
        taken, self.next = self.next, next(self._tokens, ("end", ""))
        return taken

    def skip(self, *marks: str) -> bool:
        if self.next[0] == "mark" and self.next[1] in marks:
            self.take()
            return True
        return False


def _scan(text: str) -> Iterator[tuple[str, str]]:
    place = 0
    while place < len(text):
        found = _TOKEN.match(text, place)
        if found is None:
            raise ValueError(f"line {text.count(chr(10), 0, place) + 1} has {text[place : place + 20]!r}")
        place = found.end()
        if found.lastgroup is not None:
            yield found.lastgroup, found[0]


def _message(tokens: _Tokens, *, closing: str, depth: int) -> Message:
    if depth > _DEEPEST:
        raise ValueError(f"it is nested deeper than {_DEEPEST}")
    message = Message()
    while tokens.next != ("mark", closing) and tokens.next[0] != "end":
        kind, name = tokens.take()
        if kind != "word":
            raise ValueError(f"there is {name[:20]!r} where a field's name belongs")
        tokens.skip(":")
        message.fields.setdefault(name, []).extend(_values(tokens, depth=depth))
        tokens.skip(",", ";")
    if closing and not tokens.skip(closing):
        raise ValueError(f"it ends before {closing!r}")
    return message


def _values(tokens: _Tokens, *, depth: int) -> list[Any]:
    if not tokens.skip("["):
        return [_value(tokens, depth=depth)]
    values: list[Any] = []
    while not tokens.skip("]"):
        values.append(_value(tokens, depth=depth))
        tokens.skip(",")
    return values


def _value(tokens: _Tokens, *, depth: int) -> Any:
    kind, text = tokens.take()
    if kind == "mark" and text in _CLOSING:
        return _message(tokens, closing=_CLOSING[text], depth=depth + 1)
    if kind == "text":
        return text[1:-1]
    if kind == "number":
        return int(text) if text.lstrip("-").isdecimal() else float(text)
    if kind == "word":
        return text
    raise ValueError(f"there is {text[:20] or 'the end'!r} where a value belongs")
