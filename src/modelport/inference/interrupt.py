"""Stopping a call from outside its task: a client that hung up, a deadline that passed."""

from __future__ import annotations

import asyncio
import math

from modelport.errors import CallCancelled, CallTimeout, ModelportError


class Interrupt:
    """Cancels the task that made it, once, and remembers why, so that the cancellation can be told as an error.

    Concurrency: `fire` is called from the event loop (a timer, a connection's callback), never from a thread.
    """

    __slots__ = ("_deadlines", "_task", "error")

    # Whether the client hung up on a call that goes on without it; see `PatientInterrupt`.
    gone = False

    def __init__(self, loop: asyncio.AbstractEventLoop, deadlines: Deadlines | None = None) -> None:
        """`deadlines`: when the call's time is over; None: never."""
        # Asking for the running loop costs a system call each time (Python 3.11 looks whether it was forked).
        task = asyncio.current_task(loop)
        assert task is not None
        self._task: asyncio.Task[object] | None = task
        self._deadlines = deadlines
        self.error: ModelportError | None = None

    def fire(self, error: ModelportError) -> None:
        """Stop the call with `error`. Later ones, and one after `disarm`, change nothing."""
        if self.error is None and self._task is not None:
            self.error = error
            self._task.cancel()

    def arm(self) -> None:
        """Stop the call with `CallTimeout` when its time is over, unless it is disarmed before."""
        if self._deadlines is not None:
            self._deadlines.add(self)

    def hang_up(self) -> None:
        """The client is gone: stop the call."""
        self.fire(CallCancelled())

    def claim(self) -> ModelportError | None:
        """In an `except CancelledError`: the reason, if the cancellation was ours; it is then taken back."""
        if self.error is not None and self._task is not None:
            self._task.uncancel()
            self._task = None
        return self.error

    def disarm(self) -> None:
        """Nothing is left to stop."""
        self._task = None
        if self._deadlines is not None:
            self._deadlines.remove(self)


class PatientInterrupt(Interrupt):
    """The same for a call whose answer is read on when its client is gone, for up to `drain_s`."""

    __slots__ = ("_drain_s", "_loop", "gone")

    def __init__(self, loop: asyncio.AbstractEventLoop, deadlines: Deadlines | None, drain_s: float) -> None:
        super().__init__(loop, deadlines)
        self._loop = loop
        self._drain_s = drain_s
        self.gone = False

    def hang_up(self) -> None:
        """The client is gone: stop the call when its time without one is over."""
        self.gone = True
        if self._drain_s < math.inf:
            self._loop.call_later(self._drain_s, self.fire, CallCancelled())


class Deadlines:
    """Calls that may take `timeout_s` each. They expire in the order in which they came, so one timer serves them all:
    it is set for the first, and a call that ends in time, as nearly all do, costs no timer of its own."""

    __slots__ = ("_due_s", "_loop", "_timer", "timeout_s")

    def __init__(self, loop: asyncio.AbstractEventLoop, *, timeout_s: float) -> None:
        self._loop = loop
        self.timeout_s = timeout_s
        self._due_s: dict[Interrupt, float] = {}
        self._timer: asyncio.TimerHandle | None = None

    def add(self, interrupt: Interrupt) -> None:
        self._due_s[interrupt] = self._loop.time() + self.timeout_s
        if self._timer is None:
            self._timer = self._loop.call_later(self.timeout_s, self._ring)

    def remove(self, interrupt: Interrupt) -> None:
        self._due_s.pop(interrupt, None)

    def _ring(self) -> None:
        """Stop what is due, and come back for the next one, if there is any."""
        self._timer = None
        now_s = self._loop.time()
        for interrupt, due_s in list(self._due_s.items()):
            if due_s > now_s:
                self._timer = self._loop.call_at(due_s, self._ring)
                return
            del self._due_s[interrupt]
            interrupt.fire(CallTimeout(f"The call took longer than {self.timeout_s:g} s."))
