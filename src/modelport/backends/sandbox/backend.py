"""The sandbox as a backend: the answer is decided first, then sent at the pace that the prompt asks for."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Any

from modelport.backends.protocol import Health, Status
from modelport.backends.sandbox.answers import Answer, directives_of, plan_answers
from modelport.backends.sandbox.directives import Directives, read_directives
from modelport.backends.sandbox.embeddings import embed
from modelport.backends.sandbox.failures import failure
from modelport.backends.sandbox.logprobs import logprobs_of
from modelport.backends.sandbox.tokens import count_input
from modelport.calls import Call, Delta, Operation, Usage
from modelport.dialect.openai import ChunkWriter
from modelport.errors import CallTimeout, ModelportError, UpstreamFailed
from modelport.kit.clock import Clock, SystemClock

FINGERPRINT = "fp_sandbox"
# A long answer without delays lets other calls run this often.
_TOKENS_PER_TURN = 32
_CUT = "The sandbox broke the answer off as it was asked to"

Sleep = Callable[[float], Awaitable[Any]]


class SandboxBackend:
    """Holds nothing and loads nothing. Usage is exact on every delta, and so is `count_input`."""

    def __init__(self, *, clock: Clock | None = None, sleep: Sleep = asyncio.sleep) -> None:
        self._clock = clock or SystemClock()
        self._sleep = sleep

    @property
    def kind(self) -> str:
        return "sandbox"

    async def start(self) -> None:
        """Ready from the start."""

    async def close(self) -> None:
        """Nothing to stop."""

    def health(self) -> Health:
        return Health(Status.READY)

    async def count_input(self, call: Call, *, model: str) -> int:
        return count_input(call)

    async def stream(self, call: Call, *, model: str, max_output_tokens: int | None) -> AsyncGenerator[Delta]:
        """See `Backend.stream` and docs/guides/sandbox.md."""
        asked = directives_of(call)
        first = asked[0]
        if first.latency_s:
            await self._sleep(first.latency_s)
        if first.error is not None:
            raise failure(first.error)
        if call.operation is Operation.EMBEDDING:
            yield embed(call)
        elif call.operation is Operation.PREDICT:
            yield _predict(call)
        elif call.operation is Operation.INFER:
            yield Delta(whole=True, value=call.request.inputs, usage=Usage())
        else:
            answers = plan_answers(call, asked, bound=max_output_tokens)
            async for delta in self._generate(call, answers, first):
                yield delta

    async def _generate(self, call: Call, answers: list[Answer], pace: Directives) -> AsyncGenerator[Delta]:
        writer = _Writer(call)
        input_tokens, produced = count_input(call), 0
        for index, answer in enumerate(answers):
            before = writer.opening(answer, index)
            for place in range(len(answer.pieces)):
                await self._pace(call, pace, produced)
                produced += 1
                raw = before + writer.piece(answer, place, index)
                before = b""
                yield Delta(raw, usage=Usage(input_tokens, produced))
            if index == len(answers) - 1:
                await self._end(call, pace)
            raw = before + writer.chunks.finish(answer.finish, index=index, stop=answer.stop)
            yield Delta(raw, usage=Usage(input_tokens, produced), timed=False)
        usage = Usage(input_tokens, produced)
        yield Delta(writer.chunks.usage(usage), usage=usage, timed=False)

    async def _pace(self, call: Call, pace: Directives, produced: int) -> None:
        """What happens before token number `produced`."""
        if pace.cut == produced:
            raise UpstreamFailed(_CUT)
        if pace.hang == produced:
            await self._hang(call)
        delay_s = pace.per_token_s if produced else pace.first_token_s
        if delay_s or produced % _TOKENS_PER_TURN == _TOKENS_PER_TURN - 1:
            await self._sleep(delay_s)

    async def _end(self, call: Call, pace: Directives) -> None:
        """An answer that is over before the token at which it was to break still does not end well."""
        if pace.cut is not None:
            raise UpstreamFailed(_CUT)
        if pace.hang is not None:
            await self._hang(call)

    async def _hang(self, call: Call) -> None:
        await self._sleep(max(call.deadline_s - self._clock.monotonic_s(), 0))
        raise CallTimeout()


class _Writer:
    """The events of one call's choices."""

    __slots__ = ("_call", "_offset", "chunks")

    def __init__(self, call: Call) -> None:
        self._call = call
        self._offset = 0
        self.chunks = ChunkWriter(call, fingerprint=FINGERPRINT)

    def opening(self, answer: Answer, index: int) -> bytes:
        self._offset = len(answer.prefix)
        if self._call.operation is Operation.CHAT:
            return self.chunks.role(index)
        return self.chunks.text(answer.prefix, index=index) if answer.prefix else b""

    def piece(self, answer: Answer, place: int, index: int) -> bytes:
        token = answer.pieces[place]
        if answer.tool is None:
            logprobs = logprobs_of(self._call, token, offset=self._offset)
            self._offset += len(token)
            return self.chunks.text(token, index=index, logprobs=logprobs)
        if place:
            return self.chunks.tool_arguments(0, token, index=index)
        digest = hashlib.sha256(f"{self._call.id}/{index}".encode()).hexdigest()
        return self.chunks.tool_start(0, id=f"call_{digest[:24]}", name=answer.tool, index=index)


def _predict(call: Call) -> Delta:
    """Each input itself; one with a directive that fails, fails, alone where the call is partial."""
    value: list[Any] = []
    for item in call.request.inputs:
        try:
            value.append(_answered(item))
        except ModelportError as error:
            if not call.partial:
                raise
            value.append(error)
    return Delta(whole=True, value=value, usage=Usage())


def _answered(item: Any) -> Any:
    asked = read_directives(item) if isinstance(item, str) else None
    if asked is not None and asked.error is not None:
        raise failure(asked.error)
    return _echo(item)


def _echo(item: Any) -> Any:
    """What a prediction answers: the input itself, and of a file its size and hash."""
    if isinstance(item, bytes):
        return {"size_bytes": len(item), "sha256": hashlib.sha256(item).hexdigest()}
    return item
