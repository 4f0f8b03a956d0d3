"""The messages of `/v1/ws`, both ways. Pure.

A client sends `{"type": …, "id": …, …}`, with the members of the request beside them; it is answered with `delta` and
`result` messages that repeat its id, and one `done` or `error` at the end.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, Literal

import msgspec

from modelport.api.problems import error_member
from modelport.dialect.openai import usage_body
from modelport.errors import ModelportError
from modelport.inference.run import Run
from modelport.kit.money import format_usd

_encode = msgspec.json.Encoder().encode
_DATA = b"data:"


class Head(msgspec.Struct):
    """What every message of a client has. `key` belongs to `auth`."""

    type: Literal["auth", "chat.create", "predict.create", "cancel"]
    id: Annotated[str, msgspec.Meta(max_length=64)] = ""
    key: Annotated[str, msgspec.Meta(max_length=512)] = ""


def delta_frames(id_: str, events: bytes) -> Iterator[bytes]:
    """One message for each server-sent event that holds data."""
    for event in events.split(b"\n\n"):
        data = b"".join(line[len(_DATA) :] for line in event.split(b"\n") if line.startswith(_DATA)).strip()
        if data:
            yield _encode({"type": "delta", "id": id_, "data": msgspec.Raw(data)})


def result_frame(id_: str, data: Any) -> bytes:
    """The whole answer; `data` may be JSON already."""
    return _encode({"type": "result", "id": id_, "data": msgspec.Raw(data) if isinstance(data, bytes) else data})


def done_frame(id_: str, run: Run, *, latency_ms: float) -> bytes:
    """The last message of a call that succeeded: what served it and what it cost."""
    served = run.plan.served
    return _encode(
        {
            "type": "done",
            "id": id_,
            "request_id": run.call.id,
            "model": served.model,
            "model_version": served.version,
            "usage": usage_body(run.usage),
            "cost_usd": format_usd(run.cost_nanos),
            "latency_ms": latency_ms,
        }
    )


def error_frame(id_: str, error: ModelportError, *, request_id: str = "", run: Run | None = None) -> bytes:
    """The last message of a call that failed, or was cancelled: why, when to come back, and what it cost."""
    body: dict[str, Any] = {"type": "error", "id": id_, "status": error.status, "error": error_member(error)}
    if request_id:
        body["request_id"] = request_id
    if error.retry_after_s is not None and error.should_retry is not False:
        body["retry_after_s"] = round(error.retry_after_s, 3)
    if run is not None:
        body["cost_usd"] = format_usd(run.cost_nanos)
    return _encode(body)


READY = _encode({"type": "ready"})
