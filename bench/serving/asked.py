"""What is known of a server that is up."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from bench.build import ROOT
from bench.processes import Watched

PROGRAMS = ROOT / "bench" / "serving" / "programs"
BINARY = "application/octet-stream"


@dataclass(slots=True)
class Asked:
    """A server that is up, and how it is asked. `marker`: its answer's numbers follow it as text; empty: they are the
    last bytes of the body."""

    watched: Watched
    port: int
    path: str
    encode: Callable[[Any], bytes]
    marker: str = ""
    content_type: str = "application/json"
    headers: dict[str, str] = field(default_factory=dict)
