"""Loads one Modelport for a long time, watches its memory, and counts its usage rows.

    python -m bench.soak [--seconds 3600] [--calls N] [--most-growth-mb 60]

Loads of whole answers, of streams and of clients that hang up take turns. It prints the memory of all processes
after each turn, and ends with 0 when memory stayed within bounds, every answer was right, and each call that the
gateway began is in its usage report exactly once; else with 1.
"""

from __future__ import annotations

import argparse
import contextlib
import socket
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from bench.calls import PATH, WrongAnswer, request_body
from bench.figures import OURS, STREAM_64, WHOLE_64
from bench.gateways import Bench, Target, started
from bench.peers import metered_calls

# Caches, pools and the allocator's arenas fill in the first part of a run; what comes later is growth.
_WARM_SHARE = 0.25
_TURN_S = 5.0
_METERED_S = 20.0
_HANG_UPS = 50
_MB = 1_000_000


@dataclass(slots=True)
class Soaked:
    """What a run found. `memory` is (calls so far, bytes of all processes) after each turn."""

    answered: int = 0
    hang_ups: int = 0
    wrong: int = 0
    errors: int = 0
    metered: int = -1
    expected: int = 0
    memory: list[tuple[int, int]] = field(default_factory=list)

    @property
    def growth_bytes(self) -> int:
        """How much larger the processes were at the end than when they were warm."""
        warm = self.memory[int(len(self.memory) * _WARM_SHARE)]
        return self.memory[-1][1] - warm[1]

    @property
    def right(self) -> bool:
        """Whether every answer was right and every call is metered once."""
        return not self.wrong and not self.errors and self.metered == self.expected


def soak(*, seconds: float, calls: int = 0, turn_s: float = _TURN_S) -> Soaked:
    """Load for `seconds`, or until `calls` were answered. Raises: WrongAnswer, RuntimeError when a process died."""
    found = Soaked()
    with started([OURS]) as bench:
        target = bench.targets.get(OURS)
        if target is None:
            raise RuntimeError("Modelport could not be started")
        give_up_s = time.monotonic() + seconds
        while time.monotonic() < give_up_s and not (calls and found.answered >= calls):
            _turn(bench, found, turn_s)
            found.hang_ups += _hang_up(target, _HANG_UPS)
            found.memory.append((found.answered, target.running.watched.pss_bytes()))
            print(f"{found.answered:>12,} calls  {found.memory[-1][1] / _MB:8.1f} MB", flush=True)
        found.expected = target.sent + found.hang_ups
        found.metered = _metered(target, found.expected)
    return found


def _turn(bench: Bench, found: Soaked, turn_s: float) -> None:
    for scenario in (WHOLE_64, STREAM_64):
        measured = bench.measure(scenario, OURS, seconds=turn_s / 2, warm_up_s=0.1)
        found.answered += measured.calls
        found.wrong += measured.wrong
        found.errors += measured.errors


def _hang_up(target: Target, number: int) -> int:
    """Begin streams and close the connection after the first bytes; how many the gateway had begun."""
    body = request_body(stream=True)
    headers = {"host": "x", "content-type": "application/json", "content-length": str(len(body))}
    head = "".join(f"{name}: {text}\r\n" for name, text in (headers | target.running.headers).items())
    begun = 0
    for _ in range(number):
        with socket.create_connection(("127.0.0.1", target.running.port), timeout=30) as connection:
            connection.sendall(f"POST {PATH} HTTP/1.1\r\n{head}\r\n".encode() + body)
            begun += connection.recv(12) == b"HTTP/1.1 200"
    return begun


def _metered(target: Target, expected: int) -> int:
    """What the usage report counts, once it counts what is expected or has had time to."""
    found, give_up_s = -1, time.monotonic() + _METERED_S
    while found != expected and time.monotonic() < give_up_s:
        with contextlib.suppress(OSError, KeyError, ValueError):
            found = metered_calls(target.running)
        time.sleep(0.2)
    return found


def _arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m bench.soak", description="Load one Modelport and watch its memory."
    )
    parser.add_argument("--seconds", type=float, default=3600.0, help="how long (default 3600)")
    parser.add_argument("--calls", type=int, default=0, help="stop after so many answers (default: only by time)")
    parser.add_argument("--most-growth-mb", type=float, default=60.0, help="more growth than this is a failure")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run it and say what came out; 0 when all is well, 1 when not, 2 when it could not run."""
    options = _arguments(arguments)
    try:
        found = soak(seconds=options.seconds, calls=options.calls)
    except (WrongAnswer, RuntimeError) as error:
        print(f"the soak could not run: {error}", file=sys.stderr)
        return 2
    print(
        f"{found.answered:,} answers and {found.hang_ups:,} hang-ups, {found.wrong} wrong, {found.errors} errors; "
        f"{found.metered:,} of {found.expected:,} calls metered; memory grew by {found.growth_bytes / _MB:.1f} MB"
    )
    return 0 if found.right and found.growth_bytes <= options.most_growth_mb * _MB else 1


if __name__ == "__main__":
    sys.exit(main())
