"""The chat chunks of an answer as the events of a response, and as the response that they add up to.

Pure: bytes and plain values in, bytes out. An answer that was not asked to stream goes the same way without being
written as events, so that both have one meaning.

Source: OpenAI API reference (Responses: streaming events, the response object), as of 2026-11; the order of the
events is that of WIRE.md.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import msgspec

from modelport.calls import Call, Usage
from modelport.dialect.openai import events
from modelport.dialect.responses.items import Event, FunctionCall, Speech, SpeechKind, Status
from modelport.errors import LimitExceeded, ModelportError
from modelport.requests import ResponsesRequest

_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder().decode
# What a chat calls the end, where it is no good one; all else completes the response.
_INCOMPLETE = {"length": "max_output_tokens", "content_filter": "content_filter"}
# How servers call the chain of thought, which OpenAI's own chat does not show.
_THOUGHTS = ("reasoning_content", "reasoning")


def usage_body(usage: Usage) -> dict[str, Any]:
    """The `usage` member of a response."""
    return {
        "input_tokens": usage.input_tokens,
        "input_tokens_details": {"cached_tokens": usage.cached_tokens, "cache_write_tokens": 0},
        "output_tokens": usage.output_tokens,
        "output_tokens_details": {"reasoning_tokens": usage.reasoning_tokens},
        "total_tokens": usage.input_tokens + usage.output_tokens,
    }


class ResponseWriter:
    """One call's answer: `start`, any number of `take`, then `end` or `fail`; each returns complete events.

    Where the call does not stream there are none, and `body` is the response. What an upstream sends is not to be
    trusted: members that make no sense are passed over.
    """

    __slots__ = ("_before", "_echo", "_finish", "_head", "_id", "_items", "_number", "_open", "_stream", "_tools")

    def __init__(self, call: Call, request: ResponsesRequest) -> None:
        self._stream = call.stream
        self._id = call.id[4:]
        self._head = {
            "id": f"resp_{self._id}",
            "object": "response",
            "created_at": call.started_us // 1_000_000,
            "model": call.model,
        }
        self._echo = _encode(_echo(request))[1:]
        self._number = 0
        self._items: list[Speech | FunctionCall] = []
        self._open: list[Speech | FunctionCall] = []
        # By their number in the chat; also those that are closed, so that they are not opened anew.
        self._tools: dict[int, FunctionCall] = {}
        self._finish = ""
        # What stands before the text in an event for the open part.
        self._before = b""

    def start(self) -> bytes:
        """The events before the first piece."""
        if not self._stream:
            return b""
        member = b'"response":' + self._response("in_progress")
        return self._numbered("response.created", member) + self._numbered("response.in_progress", member)

    def take(self, raw: bytes) -> bytes:
        """The events for the chunks in `raw`, complete ones."""
        return b"".join([self._take(choice, "delta") for chunk in events(raw) for choice in _choices(chunk)])

    def take_whole(self, body: bytes) -> None:
        """A chat's answer that came as one: its message is one piece."""
        for choice in _choices(_decode(body)):
            self._take(choice, "message")

    def end(self, usage: Usage) -> bytes:
        """The last events of an answer that ended, well or at its bound."""
        # A model that says nothing has said an empty text.
        out = b"" if self._items else self._written(self._say("output_text"))
        status: Status = "incomplete" if self._finish in _INCOMPLETE else "completed"
        out += self._written(self._close(self._open, status))
        return out + self._numbered(f"response.{status}", b'"response":' + self.body(usage)) if self._stream else b""

    def body(self, usage: Usage) -> bytes:
        """The response, once it has ended."""
        reason = _INCOMPLETE.get(self._finish)
        if reason is None:
            return self._response("completed", usage=usage_body(usage))
        return self._response("incomplete", usage=usage_body(usage), incomplete_details={"reason": reason})

    def fail(self, error: ModelportError) -> bytes:
        """The last event of an answer that failed after its first byte."""
        for item in self._open:
            item.status = "incomplete"
        # The dialect has a closed list of codes, which some clients check; ours is told beside it.
        code = "rate_limit_exceeded" if isinstance(error, LimitExceeded) else "server_error"
        told = {"code": code, "message": error.message, "param": error.param, "type": error.code}
        return self._numbered("response.failed", b'"response":' + self._response("failed", error=told))

    def _take(self, choice: dict[str, Any], member: str) -> bytes:
        finish = choice.get("finish_reason")
        if isinstance(finish, str):
            self._finish = finish
        delta = choice.get(member)
        if not isinstance(delta, dict):
            return b""
        out = b""
        thought = next((delta[name] for name in _THOUGHTS if delta.get(name)), None)
        if isinstance(thought, str):
            out += self._text("reasoning_text", thought)
        for kind, name in (("output_text", "content"), ("refusal", "refusal")):
            text = delta.get(name)
            if isinstance(text, str) and text:
                out += self._text(kind, text, choice.get("logprobs"))
        tools = delta.get("tool_calls")
        for place, tool in enumerate(tools if isinstance(tools, list) else ()):
            if isinstance(tool, dict):
                out += self._written(self._call(tool, place))
        return out

    def _text(self, kind: str, text: str, chat_logprobs: Any = None) -> bytes:
        """A piece of text, behind the opening of its part where it is the first of it."""
        opening = b""
        speech = self._open[-1] if self._open else None
        if not isinstance(speech, Speech) or not speech.goes_on_with(kind):
            opening = self._written(self._say(kind))
            speech = self._open[-1]
            assert isinstance(speech, Speech)
            self._before = _encode(speech.place())[1:-1] + b',"delta":'
        logprobs = _logprobs(chat_logprobs) if kind == "output_text" else []
        speech.add(text, logprobs)
        if not self._stream:
            return b""
        beside = b',"logprobs":' + _encode(logprobs) if kind == "output_text" else b""
        return opening + self._numbered(f"response.{kind}.delta", self._before + _encode(text) + beside)

    def _say(self, kind: str) -> Iterator[Event]:
        """Open a part for text of this kind, in the open message or thought where it belongs there."""
        wanted: SpeechKind = "reasoning" if kind == "reasoning_text" else "message"
        speech = self._open[-1] if self._open else None
        if not isinstance(speech, Speech) or speech.kind != wanted:
            yield from self._make_way()
            index = len(self._items)
            prefix = "rs" if wanted == "reasoning" else "msg"
            speech = Speech(wanted, id=self._item_id(prefix), index=index)
            yield from self._opened(speech)
        yield from speech.open_part(kind)

    def _call(self, part: dict[str, Any], place: int) -> Iterator[Event]:
        """Open a function's call where it is new; add to its arguments."""
        number = part.get("index")
        if not isinstance(number, int):
            number = place
        function = part.get("function")
        if not isinstance(function, dict):
            function = {}
        call = self._tools.get(number)
        if call is None:
            yield from self._make_way()
            index = len(self._items)
            call_id = str(part.get("id") or f"call_{self._id}{index:02d}")
            name = str(function.get("name") or "")
            call = self._tools[number] = FunctionCall(id=self._item_id("fc"), index=index, call_id=call_id, name=name)
            yield from self._opened(call)
        arguments = function.get("arguments")
        if isinstance(arguments, str) and arguments and call.status == "in_progress":
            yield call.add(arguments)

    def _opened(self, item: Speech | FunctionCall) -> Iterator[Event]:
        self._items.append(item)
        self._open.append(item)
        yield item.open()

    def _make_way(self) -> Iterator[Event]:
        """Close what is open before another item opens; calls that some servers write by turns stay open."""
        yield from self._close([item for item in self._open if item.is_whole], "completed")

    def _close(self, items: Iterable[Speech | FunctionCall], status: Status) -> Iterator[Event]:
        for item in list(items):
            self._open.remove(item)
            yield from item.close(status)

    def _item_id(self, prefix: str) -> str:
        return f"{prefix}_{self._id}{len(self._items):02d}"

    def _response(self, status: str, **known: Any) -> bytes:
        """The response object as it is now."""
        body = {
            **self._head,
            "status": status,
            "error": None,
            "incomplete_details": None,
            "output": [item.body() for item in self._items],
            "usage": None,
            **known,
        }
        return _encode(body)[:-1] + b"," + self._echo

    def _written(self, events: Iterator[Event]) -> bytes:
        """The events as bytes; each is encoded before the next is made."""
        return b"".join([self._event(kind, members) for kind, members in events])

    def _event(self, kind: str, members: dict[str, Any]) -> bytes:
        return self._numbered(kind, _encode(members)[1:-1]) if self._stream else b""

    def _numbered(self, kind: str, members: bytes) -> bytes:
        number, name = self._number, kind.encode()
        self._number += 1
        return b'event: %b\ndata: {"type":"%b","sequence_number":%d,%b}\n\n' % (name, name, number, members)


def _choices(answer: Any) -> Iterator[dict[str, Any]]:
    """A response has one answer: the chat's first choice."""
    choices = answer.get("choices") if isinstance(answer, dict) else None
    for choice in choices if isinstance(choices, list) else ():
        if isinstance(choice, dict) and not choice.get("index"):
            yield choice


def _logprobs(chat: Any) -> list[Any]:
    """Those of a text's tokens, which have the same form in both dialects."""
    content = chat.get("content") if isinstance(chat, dict) else None
    return content if isinstance(content, list) else []


def _echo(request: ResponsesRequest) -> dict[str, Any]:
    """What a response repeats of its request, with what stands for the members that were left out."""
    reasoning = request.reasoning or {}
    parallel = request.parallel_tool_calls
    return {
        "background": False,
        "instructions": request.instructions,
        "max_output_tokens": request.max_output_tokens,
        "metadata": request.metadata or {},
        "parallel_tool_calls": True if parallel is None else parallel,
        "previous_response_id": None,
        "reasoning": {"effort": reasoning.get("effort"), "summary": None},
        # Nothing is kept, whatever was asked for; and no input is cut to fit.
        "store": False,
        "temperature": request.temperature,
        "text": {"format": {"type": "text"}, **(request.text or {})},
        "tool_choice": request.tool_choice or "auto",
        "tools": request.tools or [],
        "top_logprobs": request.top_logprobs or 0,
        "top_p": request.top_p,
        "truncation": "disabled",
        "user": request.user,
    }
