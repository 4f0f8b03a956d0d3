"""What the sandbox answers: a function of the request alone, decided before the first token goes out."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

import msgspec

from modelport.backends.sandbox.directives import Directives, read_directives
from modelport.backends.sandbox.instances import make_instance
from modelport.backends.sandbox.tokens import count_tokens, prompts_of, split_tokens, text_of
from modelport.calls import Call, Operation
from modelport.errors import BadRequest

_TEXT = (
    "amber birch cedar delta ember fjord grove harbor island juniper kelp lagoon meadow north orchard pebble "
    "quartz river summit tundra umber valley willow xenon yarrow zephyr anchor beacon canyon dune estuary fern"
)
_WORDS = tuple(_TEXT.split())
_SENTENCE = (
    "This is the Modelport sandbox: a mock that answers at once and costs nothing, not a model. "
    "It read {count} tokens of yours, and the same request always gets this same answer ({mark}). "
    "Write [[tokens:50]], [[error:429]] or another directive into the prompt to see other behaviour."
)


@dataclass(frozen=True, slots=True)
class Answer:
    """One choice. `pieces` are its tokens; of a tool call the first is the tool's name. `stop` is the stop sequence
    that ended it, where one did."""

    pieces: list[str]
    finish: str
    tool: str | None = None
    prefix: str = ""
    stop: str = ""


def directives_of(call: Call) -> list[Directives]:
    """What each prompt asks for; chats and predictions have one. Raises: BadRequest."""
    beside = call.metadata.get("sandbox", "")
    if call.operation is Operation.CHAT:
        said = [message for message in call.request.messages if message.role == "user"]
        return [read_directives(text_of(said[-1].content) if said else "", beside)]
    if call.operation is Operation.COMPLETION:
        return [read_directives(_as_text(prompt), beside) for prompt in prompts_of(call.request.prompt)]
    return [read_directives("", beside)]


def plan_answers(call: Call, asked: list[Directives], *, bound: int | None) -> list[Answer]:
    """All choices of a chat or completion, cut at `bound` tokens each unless asked not to be. Raises: BadRequest."""
    choices = call.request.n or 1
    return [
        _answer(call, directives, index)
        if directives.unbounded
        else _cut(call, _answer(call, directives, index), bound)
        for directives in asked
        for index in range(choices)
    ]


def _answer(call: Call, directives: Directives, index: int) -> Answer:
    if call.operation is Operation.CHAT:
        tool = _tool(call, directives)
        if tool is not None:
            name, arguments = tool
            return Answer([name, *split_tokens(msgspec.json.encode(arguments).decode())], "tool_calls", name)
        text, stop = _until_stop(call, _text(call, directives, index))
        return Answer(split_tokens(text), "stop", stop=stop)
    prefix = directives.text if call.request.echo else ""
    text, stop = _until_stop(call, _text(call, directives, index))
    return Answer(split_tokens(text), "stop", prefix=prefix, stop=stop)


def _text(call: Call, directives: Directives, index: int) -> str:
    key = f"{call.request.seed}/{index}/{directives.text}".encode()
    if directives.tokens is not None:
        return " ".join(_WORDS[byte % len(_WORDS)] for byte in hashlib.shake_256(key).digest(directives.tokens))
    if directives.echo:
        return directives.text
    form = getattr(call.request, "response_format", None) or {}
    if form.get("type") == "json_schema":
        return _as_json(_instance(form))
    if directives.json or form.get("type") == "json_object":
        return _as_json({"sandbox": True, "text": directives.text})
    mark = hashlib.sha256(key).hexdigest()[:8]
    return _SENTENCE.format(count=count_tokens(directives.text), mark=mark)


def _instance(form: dict[str, Any]) -> Any:
    wrapper = form.get("json_schema")
    schema = wrapper.get("schema") if isinstance(wrapper, dict) else None
    if not isinstance(schema, dict):
        raise BadRequest("A json_schema format needs a schema in json_schema.schema", param="response_format")
    return make_instance(schema, param="response_format")


def _tool(call: Call, directives: Directives) -> tuple[str, Any] | None:
    """Name and arguments of the tool to call, or None to answer in words."""
    choice = call.request.tool_choice
    if directives.tool is not None and call.request.messages[-1].role != "tool":
        # Once its result is there the same prompt is answered in words, or an agent would go round for ever.
        return directives.tool
    if isinstance(choice, dict):
        function = choice.get("function")
        wanted = function.get("name") if isinstance(function, dict) else None
    elif choice == "required":
        wanted = None
    else:
        return None
    for tool in call.request.tools or ():
        function = tool.get("function")
        if isinstance(function, dict) and isinstance(function.get("name"), str) and wanted in (None, function["name"]):
            return function["name"], make_instance(function.get("parameters") or {}, param="tools")
    raise BadRequest("tool_choice asks for a tool that is not among the tools", param="tool_choice")


def _cut(call: Call, answer: Answer, bound: int | None) -> Answer:
    bound = call.request.output_bound or bound
    if bound is None or len(answer.pieces) <= bound:
        return answer
    return Answer(answer.pieces[:bound], "length", answer.tool, answer.prefix)


def _until_stop(call: Call, text: str) -> tuple[str, str]:
    """The text up to the first stop sequence in it, and that sequence."""
    stop, met = call.request.stop, ""
    for sequence in [stop] if isinstance(stop, str) else stop or ():
        before, found, _ = text.partition(sequence) if sequence else (text, "", "")
        if found:
            text, met = before, sequence
    return text, met


def _as_text(prompt: str | list[int]) -> str:
    return prompt if isinstance(prompt, str) else " ".join(map(str, prompt))


def _as_json(value: Any) -> str:
    return msgspec.json.encode(value).decode()
