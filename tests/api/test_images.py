"""Pictures through the front door: the right labels, and every hostile file refused."""

from __future__ import annotations

import base64
import importlib.util
import json
import struct
import subprocess
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.serving import Server

# The picture's path inside its package, and a word that one of the first three labels must hold.
PHOTOGRAPHS = [
    ("sklearn", "datasets/images/china.jpg", ("palace", "monastery", "temple")),
    ("skimage", "data/chelsea.png", ("cat", "tabby")),
    ("skimage", "data/coffee.png", ("espresso", "cup", "coffee")),
]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with Server(tmp_path_factory.mktemp("images")) as server:
        yield server


def _photograph(package: str, path: str) -> Path:
    spec = importlib.util.find_spec(package)
    assert spec is not None
    assert spec.submodule_search_locations
    return Path(spec.submodule_search_locations[0]) / path


@pytest.mark.parametrize(("package", "path", "words"), PHOTOGRAPHS)
def test_the_right_label_is_in_the_top_three_by_every_way_in(
    server: Server, package: str, path: str, words: tuple[str, ...]
) -> None:
    file = _photograph(package, path)
    data, key = file.read_bytes(), server.credentials["api_key"]
    plain = base64.b64encode(data).decode()
    kind = "jpeg" if file.suffix == ".jpg" else "png"
    answers = [
        server.request("POST", "/v1/images/classify", body={"image": plain, "top_k": 3}, key=key)[2],
        server.request(
            "POST", "/v1/images/classify", body={"image": f"data:image/{kind};base64,{plain}", "top_k": 3}, key=key
        )[2],
        httpx.post(
            f"{server.base_url}/v1/images/classify",
            files={"image": (file.name, data, f"image/{kind}")},
            data={"top_k": "3"},
            headers={"x-api-key": key},
            timeout=30,
        ).content,
    ]
    command = [sys.executable, "-m", "modelport.cli", "classify", str(file), "--json", "--top", "3"]
    command += ["--base-url", server.base_url, "--api-key", key]
    printed = json.loads(subprocess.run(command, capture_output=True, check=True).stdout)
    bodies = [json.loads(answer)["predictions"] for answer in answers]
    bodies.append(printed[0]["predictions"] if isinstance(printed, list) else printed["predictions"])
    for predictions in bodies:
        labels = " / ".join(prediction["label"].lower() for prediction in predictions)
        assert len(predictions) == 3
        assert any(word in labels for word in words), labels
        assert all(0 <= prediction["confidence"] <= 1 for prediction in predictions)


def _bomb() -> bytes:
    """A PNG of 60,000 × 60,000 black pixels whose data is never complete; its header alone must refuse it."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    rows = zlib.compress(bytes(1_000_000))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


HOSTILE = {
    "bomb": _bomb(),
    "svg": b'<svg xmlns="http://www.w3.org/2000/svg"><rect width="9" height="9"/></svg>',
    "text": b"not a picture at all",
    "empty": b"",
    "truncated": b"",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_files_get_a_clear_refusal_and_memory_stays_flat(server: Server, name: str) -> None:
    data = HOSTILE[name]
    if name == "truncated":
        data = _photograph("sklearn", "datasets/images/china.jpg").read_bytes()[:40_000]
    before = _memory_kb(server)
    for _ in range(3):
        answer = httpx.post(
            f"{server.base_url}/v1/images/classify",
            files={"image": ("x.jpg", data, "image/jpeg")},
            headers={"x-api-key": server.credentials["api_key"]},
            timeout=30,
        )
        assert answer.status_code == 400, answer.text
        assert answer.json()["error"]["message"]
        assert answer.headers["content-type"] == "application/problem+json"
    assert _memory_kb(server) < before + 60_000


def test_a_hundred_megabytes_of_zeros_are_refused_by_their_size(server: Server) -> None:
    before = _memory_kb(server)
    answer = httpx.post(
        f"{server.base_url}/v1/images/classify",
        content=bytes(100_000_000),
        headers={"x-api-key": server.credentials["api_key"], "content-type": "image/png"},
        timeout=30,
    )
    assert answer.status_code == 413
    assert answer.json()["error"]["code"] == "request_too_large"
    assert _memory_kb(server) < before + 30_000


def _memory_kb(server: Server) -> int:
    total = 0
    for pid in server.workers():
        status = Path(f"/proc/{pid}/status").read_text()
        total += int(status.partition("VmRSS:")[2].split()[0])
    return total
