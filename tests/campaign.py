"""How long the long tests run: short in `make test`, in full under `make soak`."""

from __future__ import annotations

import os

FULL = os.environ.get("MODELPORT_CAMPAIGN") == "full"


def rounds(*, short: int, full: int) -> int:
    """`full` under `make soak`, else `short`."""
    return full if FULL else short
