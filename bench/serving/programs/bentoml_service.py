"""BentoML with its adaptive batching, base64 in JSON. MAX_LATENCY_MS is what it sheds load by."""

from __future__ import annotations

import os

import bentoml
import numpy as np
from session import MAX_BATCH, one_of_base64, open_session, run


@bentoml.service(workers=1, traffic={"timeout": 60}, metrics={"enabled": False}, logging={"access": {"enabled": False}})
class Model:
    def __init__(self) -> None:
        self.session = open_session()

    @bentoml.api(batchable=True, max_batch_size=MAX_BATCH, max_latency_ms=int(os.environ["MAX_LATENCY_MS"]))
    def predict(self, data: list[str]) -> np.ndarray:  # type: ignore[type-arg]
        return run(self.session, np.stack([one_of_base64(text) for text in data]))  # type: ignore[no-any-return]
