"""Stopping a call from outside its task: a client that hung up, a deadline that passed."""

from __future__ import annotations

import asyncio

from modelport.errors import CallTimeout, ModelportError


class Interrupt:
    """Cancels the task that made it, once, and remembers why, so that the cancellation can be told as an error.

    Concurrency: `fire` is called from the event loop (a timer, a connection's callback), never from a thread.
    """

    __slots__ = ("_loop", "_task", "_timer", "error")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        # Asking for the running loop costs a system call each time (Python 3.11 looks whether it was forked).
        self._loop = loop
        task = asyncio.current_task(loop)
        assert task is not None
        self._task: asyncio.Task[object] | None = task
        self._timer: asyncio.TimerHandle | None = None
        self.error: ModelportError | None = None

    def fire(self, error: ModelportError) -> None:
        """Stop the call with `error`. Later ones, and one after `disarm`, change nothing."""
        if self.error is None and self._task is not None:
            self.error = error
            self._task.cancel()

    def expire_in(self, seconds: float) -> None:
        """Stop the call with `CallTimeout` in `seconds`, unless it is disarmed before."""
        self._timer = self._loop.call_later(max(seconds, 0), self._expire, seconds)

    def _expire(self, seconds: float) -> None:
        self.fire(CallTimeout(f"The call took longer than {seconds:g} s."))

    def claim(self) -> ModelportError | None:
        """In an `except CancelledError`: the reason, if the cancellation was ours; it is then taken back."""
        if self.error is not None and self._task is not None:
            self._task.uncancel()
            self._task = None
        return self.error

    def disarm(self) -> None:
        """Nothing is left to stop."""
        self._task = None
        if self._timer is not None:
            self._timer.cancel()
