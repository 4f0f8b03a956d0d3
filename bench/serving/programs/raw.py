"""onnxruntime alone, called as fast as it goes: prints how long one input takes (the median, in ms), and how many a
second it does one by one and in full batches. `raw.py SECONDS`."""

from __future__ import annotations

import statistics
import sys
import time
from typing import Any

import numpy as np
from session import DTYPE, MAX_BATCH, SHAPE, open_session, run


def measure(session: Any, batch: Any, seconds: float) -> tuple[float, float]:
    """The median time of a call in ms, and inputs a second."""
    times, began_s = [], time.perf_counter()
    now_s = began_s
    while now_s < began_s + seconds:
        run(session, batch)
        before_s, now_s = now_s, time.perf_counter()
        times.append(now_s - before_s)
    return statistics.median(times) * 1e3, len(batch) * len(times) / (now_s - began_s)


def main() -> None:
    seconds = float(sys.argv[1])
    session = open_session()
    batch = np.zeros((MAX_BATCH, *SHAPE), DTYPE)
    measure(session, batch[:1], 0.3)
    lone_ms, per_s = measure(session, batch[:1], seconds / 2)
    print(lone_ms, per_s, measure(session, batch, seconds / 2)[1])


if __name__ == "__main__":
    main()
