"""Tool calls for models whose templates may not know them: a prompt, a grammar, and a reader of the answer.

The form is that of the Hermes family, which most open models that know tools were trained on:
`<tool_call>\\n{"name": "…", "arguments": {…}}\\n</tool_call>`. The grammar leaves the model the choice of the
function and of the arguments and nothing else, so that the answer can be cut by position.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

import msgspec

from modelport.backends.llamacpp import schemas
from modelport.backends.llamacpp.schemas import Schema
from modelport.errors import BadRequest

MAX_TOOLS = 128
# With `parallel_tool_calls`; a small model does not know when to stop.
MAX_PARALLEL_CALLS = 8
_NAME = re.compile(r"^[A-Za-z0-9_-]{1,64}$")
_OPEN, _MIDDLE, _CLOSE = '<tool_call>\n{"name": "', '", "arguments": ', "}\n</tool_call>"


@dataclass(frozen=True, slots=True)
class Tool:
    name: str
    description: str
    parameters: dict[str, Any]
    schema: Schema


@dataclass(frozen=True, slots=True)
class Tools:
    """What the model may call. `required`: it must call; `single`: exactly one call."""

    tools: tuple[Tool, ...]
    required: bool
    single: bool

    @property
    def prompt(self) -> str:
        """What the system message says about the tools."""
        lines = [
            msgspec.json.encode({"name": tool.name, "description": tool.description, "parameters": tool.parameters})
            for tool in self.tools
        ]
        listed = b"\n".join(lines).decode()
        return (
            "You can call functions to help the user. These are the functions:\n"
            f"<tools>\n{listed}\n</tools>\n"
            "When a function helps to answer, answer only with a call of it, in this form:\n"
            '<tool_call>\n{"name": "function name", "arguments": {"parameter": "value"}}\n</tool_call>\n'
            "Otherwise answer in plain words."
        )

    @property
    def grammar(self) -> str:
        """What the model may write, in llguidance's dialect of Lark."""
        start = "calls" if self.required else "calls | words"
        more = "" if self.single else f' ("\\n" call){{0,{MAX_PARALLEL_CALLS - 1}}}'
        lines = ["%llguidance {}", f"start: {start}", f"calls: call{more}"]
        if not self.required:
            lines.append(r"words: /[^<](.|\n)*/")
        bodies = " | ".join(f"call_{index}" for index in range(len(self.tools)))
        lines.append(f"call: {bodies}")
        for index, tool in enumerate(self.tools):
            head = msgspec.json.encode(_OPEN + tool.name + _MIDDLE).decode()
            lines.append(f"call_{index}: {head} arguments_{index} {msgspec.json.encode(_CLOSE).decode()}")
            lines.append(f"arguments_{index}: %json {tool.schema.styled}")
        return "\n".join(lines)


def written(calls: list[dict[str, Any]]) -> str:
    """Earlier tool calls of an assistant message, in the form that the model writes. Raises: BadRequest."""
    parts = []
    for call in calls:
        function = call.get("function")
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            raise BadRequest("A tool call in messages has no function with a name.", param="messages")
        arguments = function.get("arguments") or "{}"
        text = arguments if isinstance(arguments, str) else msgspec.json.encode(arguments).decode()
        parts.append(f"{_OPEN}{function['name']}{_MIDDLE}{text}{_CLOSE}")
    return "\n".join(parts)


def parse(tools: list[dict[str, Any]] | None, choice: Any, *, parallel: bool) -> Tools | None:
    """The tools that the model may call, or None for an answer in words. Raises: BadRequest."""
    if not tools:
        if choice not in (None, "none", "auto"):
            raise BadRequest("tool_choice asks for a call, but there are no tools.", param="tool_choice")
        return None
    if len(tools) > MAX_TOOLS:
        raise BadRequest(f"There are more than {MAX_TOOLS} tools.", param="tools")
    known = {tool.name: tool for tool in (_tool(item, index) for index, item in enumerate(tools))}
    if len(known) != len(tools):
        raise BadRequest("Two tools have the same name.", param="tools")
    if choice == "none":
        return None
    if choice in (None, "auto", "required"):
        return Tools(tuple(known.values()), required=choice == "required", single=not parallel)
    return _chosen(known, choice, parallel)


def _chosen(known: dict[str, Tool], choice: Any, parallel: bool) -> Tools:
    wrong = BadRequest("tool_choice is none, auto, required, or names a function of tools.", param="tool_choice")
    if not isinstance(choice, dict):
        raise wrong
    if choice.get("type") == "allowed_tools":
        allowed = choice.get("allowed_tools") or {}
        names = [_function_name(item) for item in allowed.get("tools", ())]
        if not names or any(name not in known for name in names):
            raise wrong
        required = allowed.get("mode") == "required"
        return Tools(tuple(known[name] for name in dict.fromkeys(names)), required=required, single=not parallel)
    name = _function_name(choice)
    if choice.get("type") != "function" or name not in known:
        raise wrong
    return Tools((known[name],), required=True, single=True)


def _function_name(item: Any) -> str:
    function = item.get("function") if isinstance(item, dict) else None
    return str(function.get("name")) if isinstance(function, dict) else ""


def _tool(item: dict[str, Any], index: int) -> Tool:
    param = f"tools[{index}]"
    if item.get("type", "function") != "function":
        raise BadRequest("This model calls tools of type function only.", param=f"{param}.type")
    function = item.get("function")
    name = function.get("name") if isinstance(function, dict) else None
    if not isinstance(function, dict) or not isinstance(name, str) or not _NAME.match(name):
        raise BadRequest(
            "A tool has a function with a name of 1 to 64 letters, digits, _ or -.", param=f"{param}.function.name"
        )
    parameters = function.get("parameters") or {"type": "object", "properties": {}}
    where = f"{param}.function.parameters"
    if not isinstance(parameters, dict) or parameters.get("type", "object") != "object":
        raise BadRequest("A function's parameters are a JSON schema of type object.", param=where)
    typed = {"type": "object", **parameters}
    schema = schemas.check(typed, param=where, strict=function.get("strict") is True)
    return Tool(name, str(function.get("description") or ""), typed, schema)


@dataclass(slots=True)
class ToolReader:
    """Cuts one choice's text into words, starts of calls and arguments, as they come.

    `feed` returns `(kind, call, text)`: kind `text`, `start` (text is the function's name) or `arguments`. Calls after
    the first are held back until they are whole: one that repeats an earlier one ends the answer (`ended`).
    """

    calls: int = 0
    ended: bool = False
    _words: bool = False
    _rest: str = ""
    _name: str = ""
    _inside: bool = False
    _arguments: list[str] = field(default_factory=list)
    _depth: int = 0
    _string: bool = False
    _escaped: bool = False
    _seen: set[tuple[str, str]] = field(default_factory=set)

    def feed(self, text: str) -> list[tuple[str, int, str]]:
        if self.ended or not text:
            return []
        if self._words or (not self.calls and not self._inside and not self._rest and text[0] != "<"):
            self._words = True
            return [("text", 0, text)]
        self._rest += text
        out: list[tuple[str, int, str]] = []
        while not self.ended and (self._read_arguments(out) if self._inside else self._read_head(out)):
            pass
        return out

    def _read_head(self, out: list[tuple[str, int, str]]) -> bool:
        start = self._rest.find(_OPEN)
        end = self._rest.find(_MIDDLE, start + len(_OPEN)) if start >= 0 else -1
        if end < 0:
            return False
        self._name = self._rest[start + len(_OPEN) : end]
        self._rest = self._rest[end + len(_MIDDLE) :]
        self._inside, self._depth, self._arguments = True, 0, []
        if not self.calls:
            out.append(("start", 0, self._name))
        return bool(self._rest)

    def _read_arguments(self, out: list[tuple[str, int, str]]) -> bool:
        end = self._end_of_value(self._rest)
        piece, self._rest = (self._rest, "") if end < 0 else (self._rest[:end], self._rest[end:])
        self._arguments.append(piece)
        if not self.calls and piece:
            out.append(("arguments", 0, piece))
        if end < 0:
            return False
        self._close_call(out)
        return bool(self._rest)

    def _close_call(self, out: list[tuple[str, int, str]]) -> None:
        whole = (self._name, "".join(self._arguments))
        if whole in self._seen:
            self.ended = True
            return
        self._seen.add(whole)
        if self.calls:
            out += [("start", self.calls, self._name), ("arguments", self.calls, whole[1])]
        self.calls += 1
        self._inside = False

    def _end_of_value(self, text: str) -> int:
        """Where the object that is being read ends in `text`, or -1."""
        for index, char in enumerate(text):
            if self._escaped:
                self._escaped = False
            elif self._string:
                self._escaped = char == "\\"
                self._string = char != '"'
            elif char == '"':
                self._string = True
            elif char in "{[":
                self._depth += 1
            elif char in "}]":
                self._depth -= 1
                if self._depth == 0:
                    return index + 1
        return -1
