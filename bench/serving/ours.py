"""Modelport under measurement: as it is shipped, with a key that has limits and a model that has a price."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import numpy as np
from PIL import Image

from bench.build import ROOT, Missing
from bench.peers import Place
from bench.processes import free_port
from bench.serving.asked import BINARY, Asked
from bench.serving.models import Model

# As large as the database's column allows: counted on every call and never in the way.
_LIMITLESS = 2_000_000_000
_TOP = 5


def start_modelport(place: Place, model: Model, *, slo_ms: int = 0) -> Asked:
    """One worker; tensors by the Open Inference Protocol, in binary. `slo_ms`: what the model's calls may take; 0: as
    it comes. Raises: Missing."""
    program = ROOT / ".venv" / "bin" / "modelport"
    if not program.exists():
        raise Missing("Modelport is not installed: make setup")
    port = free_port()
    config = place.folder / "modelport.toml"
    options = {"crop_fraction": 1.0} if model.kind == "image" else {}
    options |= {"slo_ms": slo_ms} if slo_ms else {}
    told = ", ".join(f"{name} = {value}" for name, value in options.items())
    row = f'id = "bench"\nkind = "{model.kind}"\nbackend = "onnx"\noptions = {{ {told} }}\nsource = "{model.path}"\n'
    config.write_text(f'default_models = false\n[[models]]\n{row}prices = {{ usd_per_request = "0.0001" }}\n')
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


def let_in(asked: Asked, model: Model, data: Path) -> str:
    """Give the caller a key with all three limits; a note where it has to ask otherwise. Raises: OSError."""
    owner_key = json.loads((data / "credentials.json").read_text())["api_key"]
    limits = dict.fromkeys(("requests_per_minute", "tokens_per_minute", "concurrent_calls"), _LIMITLESS)
    body = json.dumps({"name": "bench", "scopes": ["inference", "models:read"], "limits": limits}).encode()
    headers = {"authorization": f"Bearer {owner_key}", "content-type": "application/json"}
    request = Request(f"http://127.0.0.1:{asked.port}/v1/api_keys", data=body, headers=headers)
    with urlopen(request, timeout=30) as answer:
        asked.headers["authorization"] = f"Bearer {json.load(answer)['key']}"
    return "" if _has_protocol(asked) else _ask_otherwise(asked, model)


def _has_protocol(asked: Asked) -> bool:
    try:
        urlopen(f"http://127.0.0.1:{asked.port}/v2", timeout=30).close()
    except HTTPError as error:
        return error.code != 404
    return True


def _ask_otherwise(asked: Asked, model: Model) -> str:
    """Without the Open Inference Protocol: rows in JSON, pictures as files, of whose answer the last label counts."""
    asked.headers.pop("inference-header-content-length")
    if model.kind == "tabular":
        asked.path, asked.content_type, asked.marker = "/v1/predict", "application/json", '"value":'
        asked.encode = lambda value: json.dumps({"model": "bench", "inputs": [value.tolist()]}).encode()
    else:
        asked.path, asked.content_type, asked.marker = "/v1/images/classify", "image/bmp", '"confidence":'
        asked.encode = _bitmap
        asked.expected = tuple(np.sort(scores)[-_TOP:][:1] for scores in model.expected)
    return "Modelport was asked in JSON and with picture files: it does not speak the Open Inference Protocol yet."


def _bitmap(value: Any) -> bytes:
    file = io.BytesIO()
    Image.fromarray(value).save(file, "BMP")
    return file.getvalue()
