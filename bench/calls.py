"""What the bench sends: the requests, one checked probe call, and loads of them."""

from __future__ import annotations

import http.client
import json
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

MODEL = "gpt-demo"
PATH = "/v1/chat/completions"
# As the fake upstream answers: these words, in order, in one text or one a chunk.
CHUNKS = 20
INPUT_TOKENS = 420
_SENTENCE = "The quick brown fox jumps over the lazy dog near the river bank. "
# How long after its own end a load may still wait for answers in flight.
_DRAIN_S = 60


def request_body(*, stream: bool) -> bytes:
    """A chat request of 2 kB; a stream asks for the usage chunk as well."""
    body: dict[str, Any] = {
        "model": MODEL,
        "messages": [
            {"role": "system", "content": "You are terse."},
            {"role": "user", "content": "Answer in one paragraph. " + _SENTENCE * 28},
        ],
        "max_tokens": 64,
        "temperature": 0.2,
    }
    if stream:
        body |= {"stream": True, "stream_options": {"include_usage": True}}
    return json.dumps(body).encode()


@dataclass(frozen=True, slots=True)
class Shape:
    """What every right answer of one gateway looks like, taken from a probe that was read in full."""

    size_bytes: int
    events: int


@dataclass(frozen=True, slots=True)
class Loaded:
    """One load's figures. `calls` counts whole answers, of which `wrong` were not what the upstream had said.

    `right_per_s`: right answers before the end. `in_time`: right ones within the SLO. `refused`: status 429 or 503,
    among the wrong ones. `due` calls of an open loop, of which `unsent` found every connection busy.
    """

    calls: int
    wrong: int
    errors: int
    reconnects: int
    not_ok: int
    first_bad_status: int
    calls_per_s: float
    p50_ms: float
    p90_ms: float
    p99_ms: float
    first_p50_ms: float
    first_p99_ms: float
    bytes: int
    answer_bytes: int
    answer_events: int
    right_per_s: float
    in_time: int
    refused: int
    unsent: int
    due: int


class WrongAnswer(Exception):
    """A gateway's answer is not what the upstream said, so its speed means nothing."""


def probe(port: int, headers: Mapping[str, str], *, stream: bool) -> Shape:
    """The shape of a right answer: one call, decoded, its text and usage compared with what the upstream sent.

    Raises: WrongAnswer, OSError.
    """
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    try:
        sent_headers = {"content-type": "application/json", **headers}
        connection.request("POST", PATH, body=request_body(stream=stream), headers=sent_headers)
        answer = connection.getresponse()
        body = answer.read()
    except http.client.HTTPException as error:
        raise WrongAnswer(f"the answer is not HTTP: {error!r}") from error
    finally:
        connection.close()
    if answer.status != 200:
        raise WrongAnswer(f"status {answer.status}: {body[:500].decode(errors='replace')}")
    events = [line[5:].strip() for line in body.splitlines() if line.startswith(b"data:")] if stream else []
    _check(_streamed(events) if stream else _whole(body))
    return Shape(size_bytes=len(body), events=len(events))


def _whole(body: bytes) -> tuple[str, Any]:
    answer = json.loads(body)
    return answer["choices"][0]["message"]["content"].partition(" and .")[0] + " and", answer["usage"]


def _streamed(events: list[bytes]) -> tuple[str, Any]:
    if not events or events[-1] != b"[DONE]":
        raise WrongAnswer("the stream did not end with [DONE]")
    chunks = [json.loads(event) for event in events[:-1]]
    texts = [choice["delta"].get("content") or "" for chunk in chunks for choice in chunk["choices"]]
    usages = [chunk["usage"] for chunk in chunks if chunk.get("usage")]
    return " ".join(text for text in texts if text), usages[-1] if usages else None


def _check(found: tuple[str, Any]) -> None:
    text, usage = found
    expected = " ".join(f"w{index:02d} and" for index in range(CHUNKS))
    if text != expected:
        raise WrongAnswer(f"the text is {text!r} instead of {expected!r}")
    if not usage or (usage["prompt_tokens"], usage["completion_tokens"]) != (INPUT_TOKENS, CHUNKS):
        raise WrongAnswer(f"the usage is {usage!r}")


@dataclass(frozen=True, slots=True)
class Load:
    """How to put load on one port. `folder` receives the request's file."""

    program: Path
    core: int
    folder: Path

    def run(
        self, port: int, headers: Mapping[str, str], shape: Shape, *, connections: int, seconds: float, stream: bool
    ) -> Loaded:
        """Send calls for `seconds`, wait for those in flight, and return the figures. Raises: RuntimeError."""
        body = self.folder / f"request-{'stream' if stream else 'whole'}.json"
        body.write_bytes(request_body(stream=stream))
        options: dict[str, object] = {
            "port": port,
            "body": body,
            "path": PATH,
            "connections": connections,
            "seconds": seconds,
            "words": CHUNKS,
            "size": shape.size_bytes,
        }
        if stream:
            options["events"] = shape.events
        command = ["taskset", "-c", str(self.core), str(self.program)]
        command += [part for name, value in options.items() for part in (f"--{name}", str(value))]
        command += [part for name, value in headers.items() for part in ("--header", f"{name}: {value}")]
        command += ["--stream"] if stream else []
        done = subprocess.run(command, capture_output=True, text=True, timeout=seconds + _DRAIN_S)
        if done.returncode:
            raise RuntimeError(f"the load generator failed: {done.stderr.strip()}")
        return Loaded(**json.loads(done.stdout))
