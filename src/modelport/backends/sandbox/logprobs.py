"""Made-up log probabilities in OpenAI's forms: well-formed, and the same for the same token."""

from __future__ import annotations

import zlib
from typing import Any

from modelport.calls import Call, Operation


def logprobs_of(call: Call, token: str, *, offset: int) -> Any:
    """What a chunk with `token` says of its probability, or None where the caller did not ask.

    `offset` is the place of the token in its text, which text completions tell.
    """
    if call.operation is Operation.CHAT:
        if not call.request.logprobs:
            return None
        ranked = _ranked(token, call.request.top_logprobs or 0)
        return {"content": [{**_entry(token, _logprob(token)), "top_logprobs": ranked}], "refusal": None}
    if call.request.logprobs is None:
        return None
    top = {entry["token"]: entry["logprob"] for entry in _ranked(token, call.request.logprobs)}
    return {
        "tokens": [token],
        "token_logprobs": [_logprob(token)],
        "top_logprobs": [top],
        "text_offset": [offset],
    }


def _ranked(token: str, count: int) -> list[dict[str, Any]]:
    """The token itself, then made-up others, each less likely than the one before."""
    first = _logprob(token)
    return [_entry(token if rank == 0 else f"{token}~{rank}", first - 3.0 * rank) for rank in range(count)]


def _entry(token: str, logprob: float) -> dict[str, Any]:
    return {"token": token, "logprob": logprob, "bytes": list(token.encode())}


def _logprob(token: str) -> float:
    return -(zlib.crc32(token.encode()) % 100) / 1_000
