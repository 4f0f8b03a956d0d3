"""Image classification at half of its capacity keeps the promised latency and error rate, by the platform's figures.

Ten seconds here, ten minutes under `make soak`.
"""

from __future__ import annotations

import json
import os
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from bench.build import build_tools
from bench.serving.sending import Sender, write_cases

from tests.campaign import rounds
from tests.serving import Server
from tests.waiting import wait_until

CONFIG = """
default_models = false
[slo]
interval_s = 0.5
[[models]]
id = "efficientnet-lite0"
kind = "image"
backend = "onnx"
source = "prepared:efficientnet-lite0.onnx"
"""
PATH = "/v1/images/classify"
PICTURES = ("chelsea.png", "coffee.png", "astronaut.png", "rocket.jpg")


def sender(server: Server, folder: Path, key: str) -> Sender:
    """Sends photographs and checks the confidence of the last of each one's five labels."""
    spec = find_spec("skimage")
    assert spec is not None
    assert spec.origin is not None
    headers = {"content-type": "image/png"}
    cases = []
    for name in PICTURES:
        picture = (Path(spec.origin).parent / "data" / name).read_bytes()
        status, _, body = server.request("POST", PATH, body=picture, key=key, headers=headers)
        assert status == 200, body
        cases.append((picture, np.array([json.loads(body)["predictions"][-1]["confidence"]], np.float32)))
    file = folder / "pictures.cases"
    write_cases(cases, file)
    return Sender(
        program=build_tools().load,
        core=min(os.sched_getaffinity(0)),
        port=server.port,
        path=PATH,
        cases=file,
        tolerance=1e-3,
        marker='"confidence":',
        content_type="image/png",
        headers={"authorization": f"Bearer {key}"},
    )


async def test_at_half_of_its_capacity_the_promises_hold(tmp_path: Path) -> None:
    with Server(tmp_path, config=CONFIG) as server:
        key = server.credentials["api_key"]
        load = sender(server, tmp_path, key)
        # Two at once keep the engine busy without a queue that would spoil the figures.
        capacity = load.send(seconds=2, clients=2).right_per_s
        assert capacity > 0
        loaded = load.send(seconds=rounds(short=10, full=600), rate=capacity / 2)
        assert (loaded.wrong, loaded.errors, loaded.unsent) == (0, 0, 0)
        assert loaded.calls > 20

        def told() -> dict[str, Any]:
            rows = server.get("/v1/admin/slo?model=efficientnet-lite0", key=key)[1]["data"]
            return {row["objective"]: row for row in rows if row["endpoint"] == PATH}

        await wait_until(lambda: told()["errors"]["windows"][1]["total"] >= loaded.calls, "all calls are counted")
        found = told()
        assert {name: row["status"] for name, row in found.items()} == {
            "latency": "met",
            "errors": "met",
            "availability": "met",
        }
        summary = server.get("/v1/metrics?window=1h", key=key)[1]["models"][0]
        assert summary["latency_ms"]["p95"] < 200
        assert summary["error_rate"] < 0.001
