"""Ray Serve with one replica and its dynamic batching, raw bytes in and out."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import ray
from ray import serve
from ray.serve.config import HTTPOptions
from session import MAX_BATCH, PORT, one, open_session, run
from starlette.requests import Request
from starlette.responses import Response


@serve.deployment(num_replicas=1, max_ongoing_requests=256, ray_actor_options={"num_cpus": 1})
class Model:
    def __init__(self) -> None:
        self.session = open_session()

    @serve.batch(max_batch_size=MAX_BATCH, batch_wait_timeout_s=0.01)
    async def scores(self, inputs: list[Any]) -> list[Any]:
        return list(run(self.session, np.stack(inputs)))

    async def __call__(self, request: Request) -> Response:
        scores = await self.scores(one(await request.body()))
        return Response(scores.tobytes(), media_type="application/octet-stream")


if __name__ == "__main__":
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    serve.start(http_options=HTTPOptions(host="127.0.0.1", port=PORT))
    serve.run(Model.bind(), route_prefix="/predict")
    while True:
        time.sleep(3600)
