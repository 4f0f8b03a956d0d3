"""Waiting for an answer to begin: for one, for one within a time, or for the faster of two."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Callable

from modelport.calls import Delta
from modelport.errors import CallTimeout, ModelportError

Stream = AsyncGenerator[Delta]


async def lead(stream: Stream) -> list[Delta]:
    """The pieces up to the first with model output; all of them where none has any."""
    pieces: list[Delta] = []
    async for delta in stream:
        pieces.append(delta)
        if delta.timed:
            break
    return pieces


async def within(stream: Stream, seconds: float, *, whole: bool) -> Stream:
    """The pieces of `stream`, which must have begun (`whole`: ended) within `seconds`. Raises: CallTimeout."""
    try:
        try:
            async with asyncio.timeout(seconds):
                pieces = [delta async for delta in stream] if whole else await lead(stream)
        except TimeoutError:
            raise CallTimeout(f"The model gave no {'answer' if whole else 'output'} within {seconds:g} s.") from None
        for delta in pieces:
            yield delta
        async for delta in stream:
            yield delta
    finally:
        await stream.aclose()


async def race(
    first: Stream,
    *,
    after_s: float,
    second: Callable[[], Stream | None],
    failed: Callable[[int, ModelportError], None],
) -> tuple[int, list[Delta]]:
    """Which of two begins first, and its pieces until then; the other one is closed.

    `second` is asked for after `after_s`, unless the first has begun by then; None: there is none. When one fails, the
    other is waited for, and `failed` is told which of them it was; the failure of the last is raised.
    """
    streams = [first]
    tasks: list[asyncio.Future[list[Delta]]] = [asyncio.ensure_future(lead(first))]
    try:
        await asyncio.wait(tasks, timeout=after_s)
        if not tasks[0].done():
            other = second()
            if other is not None:
                streams.append(other)
                tasks.append(asyncio.ensure_future(lead(other)))
        winner = await _first_good(tasks, failed)
        return winner, tasks[winner].result()
    finally:
        await _stop(tasks, streams)


async def _first_good(tasks: list[asyncio.Future[list[Delta]]], failed: Callable[[int, ModelportError], None]) -> int:
    running = set(tasks)
    while True:
        done, running = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
        for task in sorted(done, key=tasks.index):
            error = task.exception()
            if error is None:
                return tasks.index(task)
            if not running or not isinstance(error, ModelportError):
                raise error
            failed(tasks.index(task), error)


async def _stop(tasks: list[asyncio.Future[list[Delta]]], streams: list[Stream]) -> None:
    """Close the streams of those that have not begun. A generator can't be closed while somebody waits in it."""
    for task, stream in zip(tasks, streams, strict=True):
        if not task.done():
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError, ModelportError):
                await task
            await stream.aclose()
