"""mosec with raw bytes in and out, and dynamic batching. WAIT_MS is its window; 0 leaves its own."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
from mosec import Server, Worker
from session import MAX_BATCH, one, open_session, run


class Model(Worker):
    def __init__(self) -> None:
        self.session = open_session()

    def deserialize(self, data: bytes) -> Any:
        return one(data)

    def forward(self, data: list[Any]) -> list[Any]:
        return list(run(self.session, np.stack(data)))

    def serialize(self, data: Any) -> bytes:
        scores: bytes = data.tobytes()
        return scores


if __name__ == "__main__":
    server = Server()
    server.append_worker(Model, num=1, max_batch_size=MAX_BATCH, max_wait_time=int(os.environ.get("WAIT_MS", "0")))
    server.run()
