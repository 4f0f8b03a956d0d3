"""Modelport under measurement: as it is shipped, with a key that has limits and a model that has a price."""

from __future__ import annotations

import json
from pathlib import Path
from urllib.request import Request, urlopen

from bench.build import ROOT, Missing
from bench.peers import Place
from bench.processes import free_port
from bench.serving.asked import BINARY, Asked
from bench.serving.models import Model

# As large as the database's column allows: counted on every call and never in the way.
_LIMITLESS = 2_000_000_000
# What is left of the time when the last of the wait is over.
_MARGIN = 0.6


def start_modelport(place: Place, model: Model, *, slo_ms: int = 0) -> Asked:
    """One worker; tensors by the Open Inference Protocol, in binary. `slo_ms`: what the model's calls may take; 0: as
    it comes. Raises: Missing."""
    program = ROOT / ".venv" / "bin" / "modelport"
    if not program.exists():
        raise Missing("Modelport is not installed: make setup")
    port = free_port()
    config = place.folder / "modelport.toml"
    options = f"options = {{ slo_ms = {slo_ms} }}\n" if slo_ms else ""
    # The same for what waits before the model is known to be asked for.
    server = f"[server]\nlongest_wait_ms = {slo_ms * _MARGIN}\n" if slo_ms else ""
    row = f'id = "bench"\nkind = "{model.kind}"\nbackend = "onnx"\n{options}source = "{model.path}"\n'
    config.write_text(f'default_models = false\n{server}[[models]]\n{row}prices = {{ usd_per_request = "0.0001" }}\n')
    command = [str(program), "serve", "--config", str(config), "--data-dir", str(place.folder / "data")]
    watched = place.run([*command, "--host", "127.0.0.1", "--port", str(port), "--workers", "1"])
    header = _oip_header(model)
    return Asked(
        watched,
        port,
        "/v2/models/bench/infer",
        lambda value: header + value.tobytes(),
        content_type=BINARY,
        headers={"inference-header-content-length": str(len(header))},
    )


def _oip_header(model: Model) -> bytes:
    """The JSON before the bytes; all inputs of a model are of one size, so it is the same for each."""
    datatype = {"uint8": "UINT8", "float32": "FP32"}[model.dtype]
    size = int(model.inputs[0].nbytes)
    tensor = {"name": model.input, "datatype": datatype, "shape": [1, *model.shape]}
    wanted = {"name": model.output, "parameters": {"binary_data": True}}
    asked = {"inputs": [{**tensor, "parameters": {"binary_data_size": size}}], "outputs": [wanted]}
    return json.dumps(asked).encode()


def let_in(asked: Asked, data: Path) -> None:
    """Give the caller a key with all three limits. Raises: OSError."""
    owner_key = json.loads((data / "credentials.json").read_text())["api_key"]
    limits = dict.fromkeys(("requests_per_minute", "tokens_per_minute", "concurrent_calls"), _LIMITLESS)
    body = json.dumps({"name": "bench", "scopes": ["inference", "models:read"], "limits": limits}).encode()
    headers = {"authorization": f"Bearer {owner_key}", "content-type": "application/json"}
    request = Request(f"http://127.0.0.1:{asked.port}/v1/api_keys", data=body, headers=headers)
    with urlopen(request, timeout=30) as answer:
        asked.headers["authorization"] = f"Bearer {json.load(answer)['key']}"
