"""The words that have a counterpart in OpenAI's dialect: stop reasons and usage, in both directions."""

from __future__ import annotations

from typing import Any

from modelport.calls import Usage

_STOP_REASONS = {
    "stop": "end_turn",
    "length": "max_tokens",
    "tool_calls": "tool_use",
    "function_call": "tool_use",
    "content_filter": "refusal",
}
_FINISH_REASONS = {
    "end_turn": "stop",
    "stop_sequence": "stop",
    "pause_turn": "stop",
    "max_tokens": "length",
    "model_context_window_exceeded": "length",
    "tool_use": "tool_calls",
    "refusal": "content_filter",
}


def stop_reason(finish_reason: str) -> str:
    """Why the model stopped, in Anthropic's word; a word that nobody knows is an ordinary end."""
    return _STOP_REASONS.get(finish_reason, "end_turn")


def finish_reason(stop_reason: str) -> str:
    """Why the model stopped, in OpenAI's word; a word that nobody knows is an ordinary end."""
    return _FINISH_REASONS.get(stop_reason, "stop")


def usage_body(usage: Usage) -> dict[str, Any]:
    """The `usage` member. Anthropic's `input_tokens` leave out the cached ones, ours include them."""
    return {
        "input_tokens": usage.input_tokens - usage.cached_tokens,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": usage.cached_tokens,
        "output_tokens": usage.output_tokens,
    }


def usage_from(body: Any, before: Usage | None = None) -> Usage | None:
    """The usage that a server reported, over what it had reported `before`; None where neither makes sense.

    A stream tells the input first and the output so far last; each member counts from the beginning.
    """
    if not isinstance(body, dict):
        return before
    known = before or Usage()
    read = _count(body, "cache_read_input_tokens")
    written = _count(body, "cache_creation_input_tokens")
    fresh = _count(body, "input_tokens")
    output = _count(body, "output_tokens")
    if before is None and fresh is None:
        return None
    details = body.get("output_tokens_details")
    thought = _count(details, "thinking_tokens") if isinstance(details, dict) else None
    return Usage(
        input_tokens=known.input_tokens if fresh is None else fresh + (read or 0) + (written or 0),
        output_tokens=known.output_tokens if output is None else output,
        cached_tokens=known.cached_tokens if fresh is None else read or 0,
        reasoning_tokens=known.reasoning_tokens if thought is None else thought,
    )


def _count(body: dict[str, Any], name: str) -> int | None:
    value = body.get(name)
    return value if isinstance(value, int) and value >= 0 else None
