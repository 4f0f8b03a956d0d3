"""llama.cpp in this process: loads a model, renders and tokenizes prompts, generates. Used by the child alone.

Generation goes through xllamacpp's in-process handler, whose callback gets every token and can stop it at once,
also while the prompt is being read (`return_progress` calls it once a batch). Templates and the tokenizer are only
to be had through llama.cpp's own HTTP server, which therefore listens on a private UNIX socket: a TCP port would let
every user of the machine past the platform.
"""

from __future__ import annotations

import http.client
import os
import socket
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import xllamacpp  # type: ignore[import-untyped]

from modelport.backends.llamacpp.options import LlamaCppOptions

DEFAULT_CONTEXT_TOKENS = 4096
_HTTP_TIMEOUT_S = 60.0


class EngineError(Exception):
    """llama.cpp refused a request; the text is its own and only for the log."""


class TemplateError(EngineError):
    """The model's chat template refused the messages."""


class _Timings(msgspec.Struct, frozen=True):
    cache_n: int = 0
    predicted_n: int = 0


class _Choice(msgspec.Struct):
    text: str = ""
    finish_reason: str | None = None
    logprobs: msgspec.Raw = msgspec.Raw(b"null")


class _Error(msgspec.Struct):
    message: str = ""


class _Verbose(msgspec.Struct, frozen=True):
    stopping_word: str = ""


class _Chunk(msgspec.Struct):
    choices: list[_Choice] = []
    verbose: _Verbose = msgspec.field(name="__verbose", default=_Verbose())
    timings: _Timings = _Timings()
    error: _Error | None = None


_decode_chunk = msgspec.json.Decoder(_Chunk).decode

# Called with (text, tokens so far, cached tokens, finish, logprobs, stop sequence that was met); true stops the
# generation. Called with no text and no tokens while the prompt is read.
OnToken = Callable[[str, int, int, str, bytes, str], bool]


class NativeEngine:
    """One loaded model. `generate` blocks its thread; everything may be called from several threads at once."""

    def __init__(self, path: Path, options: LlamaCppOptions, *, context_tokens: int, control_socket: Path) -> None:
        """Load the model. Raises: RuntimeError when llama.cpp can't (its reasons are on standard error)."""
        control_socket.unlink(missing_ok=True)
        self._server = xllamacpp.Server(_params(path, options, context_tokens, control_socket))
        self._http = _LocalHTTP(control_socket)
        self.context_tokens = context_tokens
        self.vocabulary = self._vocabulary()

    def warm(self) -> None:
        """Pay now what the first request would: the table of the grammar engine takes seconds to build."""
        body = {"prompt": "{", "max_tokens": 1, "grammar": '%llguidance {}\nstart: "{"'}
        self._server.handle_completions(msgspec.json.encode(body).decode(), lambda _: False)

    def render(self, messages: list[dict[str, str]]) -> list[int]:
        """The tokens of a chat by the model's template, up to where the answer begins. Raises: TemplateError."""
        status, answer = self._http.post("/apply-template", {"messages": messages})
        if status != 200:
            raise TemplateError(str(answer)[:500])
        return self.tokenize(answer["prompt"])

    def tokenize(self, text: str) -> list[int]:
        body = {"content": text, "add_special": True, "parse_special": True}
        tokens: list[int] = self._post("/tokenize", body)["tokens"]
        return tokens

    def detokenize(self, tokens: list[int]) -> str:
        text: str = self._post("/detokenize", {"tokens": tokens})["content"]
        return text

    def busy_slots(self) -> int:
        """Slots that llama.cpp itself says are at work."""
        return sum(1 for slot in self._http.get("/slots") if slot["is_processing"])

    def generate(self, body: dict[str, Any], on_token: OnToken) -> None:
        """Generate until the end or until `on_token` returns true. Raises: EngineError, also for a lost end."""
        failure = ["the generation ended without a word"]

        def on_chunk(text: str) -> bool:
            # What is raised in here is swallowed by the extension, which then ends the generation as if asked to.
            failure[:] = ["a chunk could not be read"]
            chunk = _decode_chunk(text)
            if chunk.error is not None:
                failure[:] = [chunk.error.message]
                return True
            choice, timings = chunk.choices[0], chunk.timings
            finish = choice.finish_reason or ""
            stop = on_token(
                choice.text,
                timings.predicted_n,
                timings.cache_n,
                finish,
                bytes(choice.logprobs),
                chunk.verbose.stopping_word,
            )
            failure[:] = [] if stop or finish else ["the generation ended without a reason"]
            return stop

        extra = {"stream": True, "timings_per_token": True, "return_progress": True}
        self._server.handle_completions(msgspec.json.encode({**body, **extra}).decode(), on_chunk)
        if failure:
            raise EngineError(failure[0])

    def _post(self, path: str, body: dict[str, Any]) -> Any:
        status, answer = self._http.post(path, body)
        if status != 200:
            raise EngineError(f"{path}: {str(answer)[:500]}")
        return answer

    def _vocabulary(self) -> int:
        data = self._http.get("/v1/models").get("data") or [{}]
        return int((data[0].get("meta") or {}).get("n_vocab", 0))


def usable_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _params(path: Path, options: LlamaCppOptions, context_tokens: int, control_socket: Path) -> Any:
    params = xllamacpp.CommonParams()
    params.model.path = str(path)
    params.hostnames = [str(control_socket)]
    params.n_parallel = options.slots
    params.n_ctx = context_tokens * options.slots
    # A batch is the unit in which a prompt can be cancelled, and for which answers in other slots wait. It has to hold
    # a token of each slot.
    params.n_batch = max(options.batch_tokens, options.slots)
    params.n_ubatch = min(params.n_batch, 512)
    threads = options.threads or usable_cores()
    params.cpuparams.n_threads = threads
    params.cpuparams_batch.n_threads = threads
    params.n_gpu_layers = options.gpu_layers
    # The cache of idle slots in main memory takes up to 8 GiB by default and knows no tenants.
    params.cache_ram_mib = 0
    # A kept connection holds a thread: one each for the two that prepare, the one that loads, and one to spare.
    params.n_threads_http = 4
    params.verbosity = 2
    params.ui = False
    params.cors_origins = ""
    if options.chat_template:
        params.chat_template = options.chat_template
    return params


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=_HTTP_TIMEOUT_S)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))


class _LocalHTTP:
    """One kept connection per thread to llama.cpp's own server, for the few things that need it."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._local = threading.local()

    def get(self, path: str) -> Any:
        return self._ask("GET", path, None)[1]

    def post(self, path: str, body: dict[str, Any]) -> tuple[int, Any]:
        return self._ask("POST", path, msgspec.json.encode(body))

    def _ask(self, method: str, path: str, body: bytes | None) -> tuple[int, Any]:
        try:
            return self._once(method, path, body)
        except (http.client.HTTPException, ConnectionError):
            # The server closes a connection that lay idle; a fresh one tells whether anything is wrong.
            self._local.connection = None
            return self._once(method, path, body)

    def _once(self, method: str, path: str, body: bytes | None) -> tuple[int, Any]:
        connection = getattr(self._local, "connection", None)
        if connection is None:
            connection = self._local.connection = _UnixConnection(self._path)
        connection.request(method, path, body, {"content-type": "application/json"})
        response = connection.getresponse()
        return response.status, msgspec.json.decode(response.read())
