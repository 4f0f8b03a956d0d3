"""The event loop goes on while real models run at full load: prepared, computed and rendered beside it."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import io
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from modelport.backends.onnx import OnnxBackend
from modelport.calls import Call
from modelport.errors import Overloaded
from tests.contract.local_models import answer, embed, predict, serving
from tests.waiting import wait_until

CLIENTS = 16
SAMPLES = 250
EVERY_S = 0.004


def _photograph() -> str:
    noise = np.random.default_rng(0).integers(0, 255, (1200, 1600, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(noise).save(file, "JPEG")
    return base64.b64encode(file.getvalue()).decode()


PHOTOGRAPH = _photograph()
LOADS: list[tuple[str, Callable[[int], Call]]] = [
    ("efficientnet-lite0", lambda number: predict(PHOTOGRAPH)),
    ("all-minilm-l6-v2", lambda number: embed(["word " * (5 + number * 7 % 200)] * (1 + number % 8))),
    ("iris", lambda number: predict(*[[5.1, 3.5, 1.4, 0.2]] * (1 + number * 31 % 500))),
]


class Lags:
    """How late the loop woke who was due, less the time in which the machine ran something else instead of us."""

    def __init__(self) -> None:
        self.found_s: list[float] = []
        self._loop = asyncio.get_running_loop()
        self._schedule = Path(f"/proc/self/task/{threading.get_native_id()}/schedstat")
        self._wait()

    def _wait(self) -> None:
        self._began_s, self._elsewhere = time.monotonic(), self._elsewhere_s()
        self._timer = self._loop.call_later(EVERY_S, self._woken)

    def _woken(self) -> None:
        late_s = time.monotonic() - self._began_s - EVERY_S
        self.found_s.append(max(0.0, late_s - (self._elsewhere_s() - self._elsewhere)))
        self._wait()

    def _elsewhere_s(self) -> float:
        if not self._schedule.exists():
            return 0.0
        return int(self._schedule.read_text().split()[1]) / 1e9

    def stop(self) -> float:
        """The 99th percentile."""
        self._timer.cancel()
        return sorted(self.found_s)[len(self.found_s) * 99 // 100]


async def _client(backend: OnnxBackend, make: Callable[[int], Call], number: int) -> None:
    while True:
        with contextlib.suppress(Overloaded):
            await answer(backend, make(number))
        # As a connection does between two calls.
        await asyncio.sleep(0)
        number += CLIENTS


@pytest.mark.parametrize(("model", "make"), LOADS)
async def test_the_loop_is_less_than_5_ms_late_at_full_load(model: str, make: Callable[[int], Call]) -> None:
    found_s = []
    async with serving(model, slo_ms=60_000) as backend:
        clients = [asyncio.create_task(_client(backend, make, number)) for number in range(CLIENTS)]
        # The best of some rounds: a thread of ours that others of this machine hold up holds the loop up too.
        for _ in range(5):
            lags = Lags()
            await wait_until(lambda lags=lags: len(lags.found_s) >= SAMPLES, "enough samples", timeout_s=60)  # type: ignore[misc]
            found_s.append(lags.stop())
            if found_s[-1] < 0.005:
                break
        for client in clients:
            client.cancel()
        await asyncio.gather(*clients, return_exceptions=True)
    assert min(found_s) < 0.005, found_s
