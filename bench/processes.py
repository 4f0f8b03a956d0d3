"""Processes under measurement: started on one core, watched through /proc, stopped for certain."""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

_TICKS_PER_S = os.sysconf("SC_CLK_TCK")
_POLL_S = 0.05
_STOP_S = 15.0


class Watched:
    """A process with all its descendants, on one core. Its output lies in `log`."""

    def __init__(self, command: Sequence[str], *, core: int, log: Path, environment: Mapping[str, str]) -> None:
        self.log = log
        self._command = command
        with log.open("wb") as output:
            self._process = subprocess.Popen(
                ["taskset", "-c", str(core), *command],
                stdout=output,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                env={**os.environ, **environment},
                process_group=0,
            )

    def pids(self) -> list[int]:
        """The process and its living descendants."""
        parents = _parents()
        found = [self._process.pid]
        for pid in found:
            found.extend(child for child, parent in parents.items() if parent == pid)
        return found

    def cpu_s(self) -> float:
        """User and system time of the whole tree so far."""
        return sum(_cpu_s(pid) for pid in self.pids())

    def ran_s(self) -> float:
        """The same to the nanosecond, of threads that live: what `cpu_s` counts in hundredths is nothing when idle."""
        return sum(_ran_ns(pid) for pid in self.pids()) / 1e9

    def pss_bytes(self) -> int:
        """Memory of the whole tree; a page that several processes share is split between them."""
        return sum(_pss_bytes(pid) for pid in self.pids())

    def wait_ready(self, url: str, *, timeout_s: float) -> float:
        """Return once `url` answers 200, with the seconds that took. Raises: RuntimeError with the log's end."""
        began_s = time.monotonic()
        while time.monotonic() < began_s + timeout_s:
            self.check_alive()
            with contextlib.suppress(URLError, OSError), urlopen(url, timeout=2.0) as answer:
                if answer.status == 200:
                    return time.monotonic() - began_s
            time.sleep(_POLL_S)
        raise RuntimeError(f"{url} did not answer within {timeout_s} s:\n{self.log_end()}")

    def first_line(self, *, timeout_s: float) -> str:
        """The first complete line of output. Raises: RuntimeError when none comes."""
        give_up_s = time.monotonic() + timeout_s
        while time.monotonic() < give_up_s:
            line, newline, _ = self.log.read_text(errors="replace").partition("\n")
            if newline:
                return line
            time.sleep(_POLL_S)
        raise RuntimeError(f"it printed nothing within {timeout_s} s")

    def log_end(self) -> str:
        return self.log.read_text(errors="replace")[-2000:]

    def check_alive(self) -> None:
        """Raises: RuntimeError when the process has ended, with its exit code (minus the signal that killed it)."""
        if self._process.poll() is not None:
            raise RuntimeError(f"{self._command[0]} ended with {self._process.returncode}:\n{self.log_end()}")

    def stop(self) -> None:
        """End the whole tree: politely, then for certain. Idempotent."""
        if self._process.poll() is not None:
            return
        descendants = {pid: _started(pid) for pid in self.pids()[1:]}
        self._process.terminate()
        try:
            self._process.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        for pid, started in descendants.items():
            # By now the number may belong to somebody else's process, which began later.
            if started is not None and _started(pid) == started:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)


def busy_s(core: int) -> float:
    """Processor time that all programs and the kernel together have had on this core since the machine began."""
    line = next(line for line in Path("/proc/stat").read_text().splitlines() if line.startswith(f"cpu{core} "))
    user, nice, system, _idle, _iowait, irq, softirq = (int(ticks) for ticks in line.split()[1:8])
    # A process's own time includes the interrupts that came while it ran: packets over the loopback, here.
    return (user + nice + system + irq + softirq) / _TICKS_PER_S


def finished_children_s() -> float:
    """Processor time of this process's children that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


@contextlib.contextmanager
def priority(nice: int) -> Iterator[None]:
    """Inside, this process and all it starts have a priority changed by `nice`. Raises: PermissionError below zero."""
    os.nice(nice)
    # Where the kernel weighs sessions against each other, a process's own priority counts only inside its session.
    group = Path("/proc/self/autogroup")
    if not nice or not group.exists():
        yield
        return
    before = group.read_text().split()[-1]
    group.write_text(str(nice))
    try:
        yield
    finally:
        group.write_text(before)


def free_port() -> int:
    """A port of the loopback interface that nobody listened on a moment ago."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def _parents() -> dict[int, int]:
    """Every process of the machine with its parent."""
    parents = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                parents[int(entry.name)] = int(_stat(int(entry.name))[1])
    return parents


def _stat(pid: int) -> list[str]:
    """The fields of /proc/PID/stat from the state on: the name before them may hold spaces and brackets."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()


def _started(pid: int) -> str | None:
    """When the process began, in the kernel's own unit; None when there is none."""
    try:
        return _stat(pid)[19]
    except OSError:
        return None


def _cpu_s(pid: int) -> float:
    try:
        fields = _stat(pid)
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / _TICKS_PER_S


def _ran_ns(pid: int) -> int:
    total = 0
    for thread in Path(f"/proc/{pid}/task").glob("*/schedstat"):
        with contextlib.suppress(OSError):
            total += int(thread.read_text().split()[0])
    return total


def _pss_bytes(pid: int) -> int:
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:"))
