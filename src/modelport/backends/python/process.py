"""One process with the model in it, as the gateway's threads use it: started, asked, ended."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import structlog

from modelport.backends.python.frames import Batch, Closed, Failed, Load, Loaded, Outcome, Outcomes, receive, send
from modelport.backends.python.options import PythonOptions, UnusablePython

log = structlog.get_logger("modelport.models")
# What a process needs to run Python; everything else of the gateway's environment may be a secret.
_PASSED_ON = frozenset({"PATH", "HOME", "LANG", "TMPDIR", "TZ", "LD_LIBRARY_PATH", "PYTHONPATH", "VIRTUAL_ENV"})
_MAX_LINE = 2000
_END_S = 2.0
# How often a process that computes is looked at.
_LOOK_S = 0.2


class Died(Exception):
    """The process ended, or was ended, while it computed. The message says how."""


class TookTooLong(Died):
    """It was ended because it computed for too long."""


class ModelProcess:
    """Blocks: call it from threads, one at a time. A new one takes the place of one that ended."""

    def __init__(self, path: Path, options: PythonOptions, *, name: str) -> None:
        self._path = path
        self._options = options
        self._name = name
        self._line, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(  # noqa: S603 - our own program, and numbers
                [sys.executable, "-m", "modelport.backends.python.child", str(theirs.fileno()), str(os.getpid())],
                stdin=subprocess.PIPE,
                stderr=subprocess.PIPE,
                pass_fds=(theirs.fileno(),),
                env=_environment(options),
                # Out of the terminal's foreground group: a Ctrl-C there is for the gateway, which drains first.
                start_new_session=True,
            )
        threading.Thread(target=self._follow_words, name=f"words of {name}", daemon=True).start()

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def is_alive(self) -> bool:
        return self._process.poll() is None

    def load(self) -> dict[str, Any]:
        """What the model tells of itself. Raises: UnusablePython; the process is ended then."""
        options = self._options
        memory = None if options.memory_mb is None else options.memory_mb * 1_000_000
        self._line.settimeout(options.load_timeout_s)
        try:
            send(self._line, Load(str(self._path), options.class_name, options.arguments, memory))
            answer = receive(self._line)
        except TimeoutError:
            self.end()
            raise UnusablePython(f"loading took longer than {options.load_timeout_s:g} s") from None
        except Closed:
            raise UnusablePython(f"its process {self._how_it_ended()} while it was loading") from None
        if isinstance(answer, Loaded):
            return answer.info
        self.end()
        raise UnusablePython(answer.reason if isinstance(answer, Failed) else "its process said what makes no sense")

    def predict(self, inputs: Sequence[bytes]) -> list[Outcome]:
        """One outcome for each input. Raises: Died."""
        timeout_s = self._options.predict_timeout_s
        self._line.settimeout(timeout_s)
        try:
            send(self._line, Batch(list(inputs)))
            self._await_answer(timeout_s)
            answer = receive(self._line)
        except TimeoutError:
            self.end()
            raise TookTooLong(f"took longer than {timeout_s:g} s and was ended") from None
        except Closed:
            raise Died(self._how_it_ended()) from None
        if not isinstance(answer, Outcomes) or len(answer.each) != len(inputs):
            self.end()
            raise Died("said what makes no sense and was ended")
        return answer.each

    def _await_answer(self, timeout_s: float) -> None:
        """Return when something has arrived. Raises: Closed when the process ends, which the connection does not tell
        while a process that the model started holds it too; TimeoutError."""
        until_s = time.monotonic() + timeout_s
        while not select.select([self._line], [], [], _LOOK_S)[0]:
            if not self.is_alive:
                raise Closed("its process ended")
            if time.monotonic() > until_s:
                raise TimeoutError

    def end(self) -> None:
        """Be rid of the process, and of those that it started. Idempotent; may be called from any thread."""
        with contextlib.suppress(OSError):
            self._line.shutdown(socket.SHUT_RDWR)
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.kill()
        self._process.wait()
        self._line.close()
        assert self._process.stdin is not None
        self._process.stdin.close()

    def _how_it_ended(self) -> str:
        try:
            status = self._process.wait(_END_S)
        except subprocess.TimeoutExpired:
            return "closed its connection"
        finally:
            self.end()
        return f"was killed by signal {-status}" if status < 0 else f"exited with status {status}"

    def _follow_words(self) -> None:
        assert self._process.stderr is not None
        with self._process.stderr as words:
            while line := words.readline(_MAX_LINE):
                log.info("model_says", model=self._name, line=line.decode(errors="replace").rstrip())


def _environment(options: PythonOptions) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if name in _PASSED_ON or name.startswith("LC_")}
    # Threads that spin while they wait for each other take the cores from the gateway beside them.
    return kept | {"PYTHONUNBUFFERED": "1", "OMP_WAIT_POLICY": "passive"} | options.environment
