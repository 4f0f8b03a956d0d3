"""The servers that are measured side by side: how each is configured, started and asked.

Each serves one model with one worker, batches as its documentation recommends, and is asked in the form that costs it
least: raw bytes where it takes them, else base64 or numbers in JSON.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from bench.peers import Place
from bench.processes import Watched, free_port
from bench.serving.asked import BINARY, PROGRAMS, Asked
from bench.serving.figures import OURS, OURS_IN_TIME, SLO_MS
from bench.serving.install import ensure_installed, package_version
from bench.serving.models import Model
from bench.serving.ours import start_modelport
from modelport import __version__

_START_S = 120.0


@dataclass(frozen=True, slots=True)
class Peer:
    """One server: it takes calls once `ready_path` answers 200. `package`: where it is installed from; empty: ours."""

    name: str
    title: str
    start: Callable[[Place, Model], Asked]
    ready_path: str
    package: str = ""
    ready_s: float = _START_S

    def version(self) -> str:
        return package_version(self.package) if self.package else __version__


def _program(
    place: Place, model: Model, name: str, file: str, *arguments: str, **environment: str
) -> tuple[Watched, int]:
    port = free_port()
    python = ensure_installed(name)
    command = [str(python), str(PROGRAMS / file), *(argument.format(port=port) for argument in arguments)]
    return place.run(command, **model.environment(port), **environment), port


def _bytes(value: Any) -> bytes:
    data: bytes = value.tobytes()
    return data


def _base64(value: Any) -> str:
    return base64.b64encode(value.tobytes()).decode()


def _start_fastapi(place: Place, model: Model) -> Asked:
    watched, port = _program(place, model, "fastapi", "fastapi_server.py")
    return Asked(watched, port, "/predict", _bytes, content_type=BINARY)


def _start_mosec(place: Place, model: Model, *, wait_ms: int) -> Asked:
    arguments = ("--port", "{port}", "--address", "127.0.0.1", "--timeout", "30000")
    watched, port = _program(place, model, "mosec", "mosec_server.py", *arguments, WAIT_MS=str(wait_ms))
    return Asked(watched, port, "/inference", _bytes, content_type=BINARY)


def _start_litserve(place: Place, model: Model) -> Asked:
    watched, port = _program(place, model, "litserve", "litserve_server.py")
    encode = lambda value: json.dumps({"data": _base64(value)}).encode()  # noqa: E731
    return Asked(watched, port, "/predict", encode, marker='"scores":')


def _start_bentoml(place: Place, model: Model, *, max_latency_ms: int) -> Asked:
    port = free_port()
    program = ensure_installed("bentoml").parent / "bentoml"
    command = [str(program), "serve", "bentoml_service:Model", "--port", str(port), "--host", "127.0.0.1"]
    private = {"BENTOML_DO_NOT_TRACK": "True", "BENTOML_HOME": str(place.folder / "home"), "HOME": str(place.folder)}
    environment = {**model.environment(port), **private, "MAX_LATENCY_MS": str(max_latency_ms)}
    watched = place.run([*command, "--working-dir", str(PROGRAMS)], **environment)
    encode = lambda value: json.dumps({"data": [_base64(value)]}).encode()  # noqa: E731
    return Asked(watched, port, "/predict", encode, marker="[[")


def _start_mlserver(place: Place, model: Model) -> Asked:
    ports = [free_port() for _ in range(3)]
    python = ensure_installed("mlserver")
    settings = {
        "host": "127.0.0.1",
        "http_port": ports[0],
        "grpc_port": ports[1],
        "metrics_port": ports[2],
        "parallel_workers": 1,
        "debug": False,
    }
    served = {
        "name": "bench",
        "implementation": "mlserver_runtime.Model",
        "max_batch_size": model.max_batch,
        "max_batch_time": 0.01,
        "parameters": {"extra": {}},
    }
    (place.folder / "settings.json").write_text(json.dumps(settings))
    (place.folder / "model-settings.json").write_text(json.dumps(served))
    environment = {**model.environment(ports[0]), "PYTHONPATH": str(PROGRAMS)}
    watched = place.run([str(python.parent / "mlserver"), "start", str(place.folder)], **environment)
    encode = _oip_base64 if model.kind == "image" else _oip_numbers
    return Asked(watched, ports[0], "/v2/models/bench/infer", encode, marker='"data":')


def _oip_numbers(value: Any) -> bytes:
    tensor = {"name": "x", "datatype": "FP32", "shape": [1, *value.shape], "data": value.ravel().tolist()}
    return json.dumps({"inputs": [tensor]}).encode()


def _oip_base64(value: Any) -> bytes:
    parameters = {"content_type": "base64"}
    tensor = {"name": "x", "datatype": "BYTES", "shape": [1, 1], "data": [_base64(value)], "parameters": parameters}
    return json.dumps({"inputs": [tensor]}).encode()


def _start_ray(place: Place, model: Model) -> Asked:
    quiet = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_SERVE_LOG_TO_STDERR": "0", "RAY_DISABLE_DASHBOARD_LOG_INFO": "1"}
    watched, port = _program(place, model, "ray", "ray_app.py", **quiet, PYTHONPATH=str(PROGRAMS))
    return Asked(watched, port, "/predict", _bytes, content_type=BINARY)


# What stands behind the hyphen is another setting of the same server; it comes after the plain one.
PEERS = (
    Peer(OURS, "Modelport", start_modelport, "/readyz"),
    Peer(OURS_IN_TIME, "Modelport, 200 ms", partial(start_modelport, slo_ms=SLO_MS), "/readyz"),
    Peer("fastapi", "FastAPI + thread", _start_fastapi, "/openapi.json", "fastapi"),
    Peer("mosec", "mosec", partial(_start_mosec, wait_ms=0), "/", "mosec"),
    Peer("mosec-1ms", "mosec, 1 ms window", partial(_start_mosec, wait_ms=1), "/", "mosec"),
    Peer("litserve", "LitServe", _start_litserve, "/health", "litserve"),
    Peer("bentoml", "BentoML", partial(_start_bentoml, max_latency_ms=60_000), "/readyz", "bentoml"),
    Peer("bentoml-200ms", "BentoML, 200 ms", partial(_start_bentoml, max_latency_ms=SLO_MS), "/readyz", "bentoml"),
    Peer("mlserver", "MLServer", _start_mlserver, "/v2/models/bench/ready", "mlserver"),
    Peer("ray", "Ray Serve", _start_ray, "/-/healthz", "ray"),
)
