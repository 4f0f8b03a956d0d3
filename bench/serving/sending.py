"""Puts load on one server: requests with known answers, from clients that wait or at a pace of their own."""

from __future__ import annotations

import json
import struct
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from bench.calls import Loaded

# So many calls may be under way; one more could not be answered in time by any of the servers here.
_OPEN_CONNECTIONS = 4000
_DRAIN_S = 90


def write_cases(cases: Iterable[tuple[bytes, np.ndarray]], file: Path) -> None:  # type: ignore[type-arg]
    """Requests' bodies with the numbers of their right answers, as the load generator reads them."""
    parts = []
    for body, expected in cases:
        numbers = np.ascontiguousarray(expected, "<f4")
        parts.append(struct.pack("<I", len(body)) + body + struct.pack("<I", numbers.size) + numbers.tobytes())
    file.write_bytes(struct.pack("<I", len(parts)) + b"".join(parts))


@dataclass(frozen=True, slots=True)
class Sender:
    """What is sent where. `marker`: the numbers follow it in the answer's text; empty: they are its last bytes."""

    program: Path
    core: int
    port: int
    path: str
    cases: Path
    tolerance: float
    marker: str = ""
    content_type: str = "application/json"
    headers: dict[str, str] = field(default_factory=dict)
    slo_ms: float = 200

    def send(self, *, seconds: float, clients: int = 0, rate: float = 0) -> Loaded:
        """Load for so many seconds, by clients that wait for their answers or at `rate` calls a second; then those in
        flight are waited for. Raises: RuntimeError."""
        options: dict[str, object] = {
            "port": self.port,
            "path": self.path,
            "cases": self.cases,
            "type": self.content_type,
            "floats": "text" if self.marker else "binary",
            "marker": self.marker,
            "tolerance": self.tolerance,
            "connections": clients or _OPEN_CONNECTIONS,
            "seconds": seconds,
            "slo-ms": self.slo_ms,
            "rate": rate,
        }
        command = ["taskset", "-c", str(self.core), str(self.program)]
        command += [part for name, value in options.items() for part in (f"--{name}", str(value))]
        command += [part for name, value in self.headers.items() for part in ("--header", f"{name}: {value}")]
        done = subprocess.run(command, capture_output=True, text=True, timeout=seconds + _DRAIN_S)
        if done.returncode:
            raise RuntimeError(f"the load generator failed: {done.stderr.strip()}")
        return Loaded(**json.loads(done.stdout))
