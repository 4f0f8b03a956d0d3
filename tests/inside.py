"""What a server with one worker holds inside, seen from outside: for tests of what is left behind."""

from __future__ import annotations

import re
from pathlib import Path

from tests.serving import Server


def in_flight(server: Server) -> float:
    """Calls that are being answered now."""
    text = server.request("GET", "/metrics")[2].decode()
    return sum(float(value) for value in re.findall(r"^modelport_calls_in_flight(?:\{.*\})? (\S+)$", text, re.M))


def open_files(server: Server) -> int:
    """File descriptors, connections among them."""
    return len(list(_process(server, "fd").iterdir()))


def resident_bytes(server: Server) -> int:
    return int(_process(server, "statm").read_text().split()[1]) * 4096


def peak_bytes(server: Server) -> int:
    """The most memory it ever had."""
    found = re.search(r"VmHWM:\s+(\d+) kB", _process(server, "status").read_text())
    assert found is not None
    return int(found[1]) * 1024


def _process(server: Server, name: str) -> Path:
    (pid,) = server.workers()
    return Path(f"/proc/{pid}/{name}")
