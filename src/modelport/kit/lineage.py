"""Processes that end with the one that started them."""

from __future__ import annotations

import ctypes
import os
import signal
import sys

# Source: prctl(2), PR_SET_PDEATHSIG. It follows the thread that started the process, not the process of that thread.
_PR_SET_PDEATHSIG = 1


def die_with(parent: int) -> None:
    """Have the kernel kill this process with its parent, whatever it is doing then. Elsewhere than on Linux, the end
    of a connection to the parent must do."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)
