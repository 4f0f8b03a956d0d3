"""A chat request as the body of `generateContent`.

Gemini refuses members that it does not know, so nothing is forwarded unread. What has no counterpart and changes the
answer is refused by name; what only helps the server or its owner (`user`, `metadata`, `service_tier`) is left out.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from modelport.dialect.gemini.parts import parts_of
from modelport.errors import BadRequest
from modelport.requests import ChatRequest, Message

_decode = msgspec.json.decode
# Members that change the answer and that Gemini has nothing for.
_REFUSED = ("logprobs", "logit_bias", "functions", "function_call", "audio", "prediction")
_NOTHING = (b"null", b"false", b"{}", b"[]")
_SYSTEM = ("system", "developer")
# How much thought an effort is, for models that are told in tokens; Google's own translation of the words.
_BUDGETS = {"none": 0, "minimal": 1024, "low": 1024, "medium": 8192, "high": 24_576, "xhigh": 24_576}
_LEVELS = {"none": "MINIMAL", "minimal": "MINIMAL", "low": "LOW", "medium": "MEDIUM", "high": "HIGH", "xhigh": "XHIGH"}
_BY_BUDGET = ("gemini-1", "gemini-2")
# What Google's OpenAI-compatible door takes under `extra_body.google`, and where it belongs.
_EXTRAS = {"cached_content": "cachedContent", "safety_settings": "safetySettings"}
# Accepted for a call whose signature was lost, as where another model made it.
_NO_SIGNATURE = "skip_thought_signature_validator"


def contents_body(
    request: ChatRequest, fields: Mapping[str, msgspec.Raw], *, model: str, max_output_tokens: int | None
) -> dict[str, Any]:
    """The whole body. Raises: BadRequest."""
    for name in _REFUSED:
        if name in fields and bytes(fields[name]) not in _NOTHING:
            raise BadRequest(f"This model can't do {name!r}.", param=name)
    extra = _extra(fields)
    body: dict[str, Any] = {"contents": _contents(request.messages, signed=not model.startswith(_BY_BUDGET))}
    system = [
        part for message in request.messages if message.role in _SYSTEM for part in parts_of(message.content, "system")
    ]
    if system:
        body["systemInstruction"] = {"parts": system}
    if request.tools:
        body["tools"] = [{"functionDeclarations": [_declaration(tool) for tool in request.tools]}]
        body["toolConfig"] = {"functionCallingConfig": _calling(request.tool_choice)}
    config = _config(request, max_output_tokens) | _thinking(fields, extra, model)
    if config:
        body["generationConfig"] = config
    return body | {_EXTRAS[name]: value for name, value in extra.items() if name in _EXTRAS}


def _contents(messages: list[Message], *, signed: bool) -> list[dict[str, Any]]:
    """The turns. Gemini knows two roles, and has all answers to one turn's calls in the next."""
    contents: list[dict[str, Any]] = []
    names: dict[str, str] = {}
    for index, message in enumerate(messages):
        if message.role in _SYSTEM:
            continue
        where = f"messages[{index}]"
        if message.role in ("tool", "function"):
            role, parts = "user", [_result(message, names, where)]
        elif message.role == "assistant":
            role, parts = "model", parts_of(message.content, where)
            parts += [_call(call, names, where) for call in message.tool_calls or ()]
            calls = [part for part in parts if "functionCall" in part]
            if signed and calls and not any("thoughtSignature" in part for part in calls):
                calls[0]["thoughtSignature"] = _NO_SIGNATURE
        else:
            role, parts = "user", parts_of(message.content, where)
        if contents and contents[-1]["role"] == role:
            contents[-1]["parts"] += parts
        elif parts:
            contents.append({"role": role, "parts": parts})
    if not contents:
        raise BadRequest("The messages have nothing for the model to answer.", param="messages")
    return contents


def _call(call: dict[str, Any], names: dict[str, str], where: str) -> dict[str, Any]:
    function = call.get("function")
    name = function.get("name") if isinstance(function, dict) else None
    if not isinstance(function, dict) or not isinstance(name, str):
        raise BadRequest("A tool call has a function with a name.", param=f"{where}.tool_calls")
    arguments = _object(function.get("arguments") or "{}")
    if arguments is None:
        raise BadRequest("The arguments of a tool call are a JSON object.", param=f"{where}.tool_calls")
    part: dict[str, Any] = {"functionCall": {"name": name, "args": arguments}}
    if isinstance(call.get("id"), str):
        names[call["id"]] = name
        part["functionCall"]["id"] = call["id"]
    google = call.get("extra_content")
    google = google.get("google") if isinstance(google, dict) else None
    if isinstance(google, dict) and isinstance(google.get("thought_signature"), str):
        part["thoughtSignature"] = google["thought_signature"]
    return part


def _result(message: Message, names: Mapping[str, str], where: str) -> dict[str, Any]:
    """The answer to a call, by the name of its function, which a chat tells only with the call."""
    name = names.get(message.tool_call_id or "") or message.name
    if name is None:
        raise BadRequest("There is no tool call of this id before it.", param=f"{where}.tool_call_id")
    texts = [part.get("text") for part in parts_of(message.content, where)]
    if not all(isinstance(text, str) for text in texts):
        raise BadRequest("The answer to a tool call is text.", param=f"{where}.content")
    text = "\n".join(str(text) for text in texts)
    response: dict[str, Any] = {"name": name, "response": _object(text) or {"result": text}}
    if message.tool_call_id is not None:
        response["id"] = message.tool_call_id
    return {"functionResponse": response}


def _object(text: Any) -> dict[str, Any] | None:
    """The JSON object that a text holds, or None."""
    try:
        value = _decode(text) if isinstance(text, str) else text
    except msgspec.DecodeError:
        return None
    return value if isinstance(value, dict) else None


def _declaration(tool: dict[str, Any]) -> dict[str, Any]:
    function = tool.get("function")
    if tool.get("type") != "function" or not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise BadRequest("The tools of this model are functions with a name.", param="tools")
    declaration = {"name": function["name"], "description": function.get("description") or ""}
    if function.get("parameters"):
        declaration["parametersJsonSchema"] = function["parameters"]
    return declaration


def _calling(choice: str | dict[str, Any] | None) -> dict[str, Any]:
    if choice in (None, "auto"):
        return {"mode": "AUTO"}
    if choice in ("none", "required"):
        return {"mode": "NONE" if choice == "none" else "ANY"}
    if isinstance(choice, dict):
        allowed = choice.get("allowed_tools")
        if isinstance(allowed, dict) and isinstance(allowed.get("tools"), list):
            names = [_function_name(tool) for tool in allowed["tools"]]
            # VALIDATED is AUTO that takes a list of names.
            return {"mode": "ANY" if allowed.get("mode") == "required" else "VALIDATED", "allowedFunctionNames": names}
        return {"mode": "ANY", "allowedFunctionNames": [_function_name(choice)]}
    raise BadRequest("tool_choice is none, auto, required, or names a function of tools.", param="tool_choice")


def _function_name(item: Any) -> str:
    function = item.get("function") if isinstance(item, dict) else None
    name = function.get("name") if isinstance(function, dict) else None
    if not isinstance(name, str):
        raise BadRequest("tool_choice names a function.", param="tool_choice")
    return name


def _config(request: ChatRequest, max_output_tokens: int | None) -> dict[str, Any]:
    stop = [request.stop] if isinstance(request.stop, str) else request.stop
    config: dict[str, Any] = {
        "maxOutputTokens": request.output_bound or max_output_tokens,
        "temperature": request.temperature,
        "topP": request.top_p,
        "stopSequences": stop,
        "candidateCount": request.n if request.n != 1 else None,
        "seed": request.seed,
        "presencePenalty": request.presence_penalty,
        "frequencyPenalty": request.frequency_penalty,
    }
    form = request.response_format or {}
    if form.get("type") in ("json_object", "json_schema"):
        config["responseMimeType"] = "application/json"
        wanted = form.get("json_schema")
        config["responseJsonSchema"] = wanted.get("schema") if isinstance(wanted, dict) else None
    return {name: value for name, value in config.items() if value is not None}


def _thinking(fields: Mapping[str, msgspec.Raw], extra: dict[str, Any], model: str) -> dict[str, Any]:
    if "thinking_config" in extra:
        return {"thinkingConfig": extra["thinking_config"]}
    effort = _decode(fields["reasoning_effort"]) if "reasoning_effort" in fields else None
    if effort is None:
        return {}
    if effort not in _LEVELS:
        raise BadRequest(f"reasoning_effort is one of {', '.join(_LEVELS)}.", param="reasoning_effort")
    if model.startswith(_BY_BUDGET):
        return {"thinkingConfig": {"thinkingBudget": _BUDGETS[effort]}}
    return {"thinkingConfig": {"thinkingLevel": _LEVELS[effort]}}


def _extra(fields: Mapping[str, msgspec.Raw]) -> dict[str, Any]:
    body = _decode(fields["extra_body"]) if "extra_body" in fields else None
    google = body.get("google") if isinstance(body, dict) else None
    return google if isinstance(google, dict) else {}
