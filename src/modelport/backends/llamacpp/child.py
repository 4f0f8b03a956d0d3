"""The engine's own process: `python -m modelport.backends.llamacpp.child`. Started and watched by `engine.py`.

Its state goes to standard output as lines of JSON, llama.cpp's words to standard error. It ends when standard input
does, so that it never outlives its owner, however that ended.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, cast

import msgspec

from modelport.backends.llamacpp import wire
from modelport.backends.llamacpp.gguf import BrokenModel, read_header
from modelport.backends.llamacpp.native import DEFAULT_CONTEXT_TOKENS, EngineError, NativeEngine, TemplateError
from modelport.backends.llamacpp.options import COMPLAINT, LlamaCppOptions, control_path_for
from modelport.backends.llamacpp.slots import Entry, SlotTable
from modelport.kit.lineage import die_with

_EXIT_CANT_LOAD = 3
# Prompts are rendered beside the generation; more threads would only take cores from it.
_PREPARE_THREADS = 2
_EXPIRY_CHECK_S = 0.25
_MAX_CONNECTIONS = 4096
# A text this much longer than the context can't fit (no token is longer than this on average).
_MAX_BYTES_PER_TOKEN = 256


class EngineProcess:
    """Everything that happens on the event loop: connections, queue, and handing runs to threads."""

    def __init__(self, options: LlamaCppOptions) -> None:
        self._options = options
        self._loop = asyncio.get_running_loop()
        self._table = SlotTable(options.slots, options.queue)
        self._slot_threads = ThreadPoolExecutor(options.slots, "slot")
        self._prepare_threads = ThreadPoolExecutor(_PREPARE_THREADS, "prepare")
        self._outbox: list[tuple[Connection, wire.Message]] = []
        self._outbox_lock = threading.Lock()
        self._produced = 0
        self._engine: NativeEngine | None = None
        self.state = wire.State("loading", "the model is being loaded", slots=options.slots)
        self.connections: set[Connection] = set()

    def loaded(self, engine: NativeEngine) -> None:
        """Take requests from now on."""
        self._engine = engine
        self.state = wire.State("ready", "", engine.context_tokens, engine.vocabulary, self._options.slots)
        for connection in self.connections:
            if connection.watching:
                connection.send(self.state)

    def accept(self, connection: Connection, message: wire.Message) -> None:
        """Begin what `message` asks for; its answers go to `connection`."""
        if isinstance(message, wire.Watch):
            connection.watching = True
            connection.send(self.state)
            return
        engine = self._engine
        if engine is None:
            connection.send(wire.Failure("ModelLoading", "The model is still loading. Try again in a moment."))
        elif isinstance(message, wire.Generate):
            self._admit(connection, message)
        elif isinstance(message, wire.Prepare):
            self._in_thread(connection, lambda: self._prepare(engine, message))
        elif isinstance(message, wire.AskStats):
            self._in_thread(connection, lambda: self._stats(engine))

    async def expire(self) -> None:
        """Tell entries in the queue when their deadline has passed; runs until cancelled."""
        while True:
            await asyncio.sleep(_EXPIRY_CHECK_S)
            for entry in self._table.expired(time.monotonic()):
                self._fail(entry, "CallTimeout", "The call waited in the model's queue until its deadline.")

    def cancel(self, entries: list[Entry]) -> None:
        """Nobody waits for `entries` any more."""
        self._table.cancel(entries)

    def _fail(self, entry: Entry, code: str, message: str) -> None:
        connection = cast(Connection, entry.owner)
        connection.cancel()
        connection.send(wire.Failure(code, message, self._table.retry_after_s()))

    def _in_thread(self, connection: Connection, work: Callable[[], wire.Message]) -> None:
        future = self._loop.run_in_executor(self._prepare_threads, work)

        def done(finished: asyncio.Future[wire.Message]) -> None:
            error = finished.exception()
            if error is not None:
                complain(f"{type(error).__name__}: {error}")
                connection.send(wire.Failure("UpstreamFailed", "The model's engine could not do this."))
            else:
                connection.send(finished.result())

        future.add_done_callback(done)

    def _prepare(self, engine: NativeEngine, message: wire.Prepare) -> wire.Message:
        """In a thread: render and tokenize."""
        bound = engine.context_tokens * _MAX_BYTES_PER_TOKEN
        size = sum(len(item["content"]) for item in message.messages or ())
        size = max([size, *(len(prompt) for prompt in message.prompts or ())])
        if size > bound:
            text = f"This model's context holds {engine.context_tokens} tokens; the prompt is far longer."
            return wire.Failure("ContextTooLong", text)
        if message.messages is not None:
            try:
                return wire.Prepared([engine.render(message.messages)])
            except TemplateError as error:
                complain(f"the template failed: {error}")
                return wire.Failure("BadRequest", "The model's chat template can't express these messages.")
        prompts = [engine.tokenize(item) if isinstance(item, str) else item for item in message.prompts or ()]
        highest = max((token for tokens in prompts for token in tokens), default=0)
        if engine.vocabulary and highest >= engine.vocabulary:
            text = f"The prompt holds token {highest}; this model's vocabulary ends at {engine.vocabulary - 1}."
            return wire.Failure("BadRequest", text)
        texts = [
            item if isinstance(item, str) else engine.detokenize(item)
            for item in message.prompts or ()
            if message.texts
        ]
        return wire.Prepared(prompts, texts)

    def _stats(self, engine: NativeEngine) -> wire.Message:
        table = self._table
        return wire.Stats(table.busy, table.queued, engine.busy_slots(), table.seconds_per_run, self._produced)

    def _admit(self, connection: Connection, message: wire.Generate) -> None:
        deadline_s = time.monotonic() + message.timeout_s
        entries = [Entry(run, message.tenant, deadline_s, connection) for run in message.runs]
        if len(entries) > self._table.capacity:
            text = f"This asks for {len(entries)} choices at one time; this model takes at most {self._table.capacity}."
            connection.send(wire.Failure("BadRequest", text))
        elif not self._table.admit(entries, time.monotonic()):
            text = "The model's queue is full, or too long for this call to be answered in time. Try again later."
            connection.send(wire.Failure("Overloaded", text, self._table.retry_after_s()))
        else:
            connection.request, connection.entries = message, entries
            self._dispatch()

    def _dispatch(self) -> None:
        while (taken := self._table.take_next(time.monotonic())) is not None:
            entry, may_use_cache = taken
            body = self._body(entry, may_use_cache)
            future = self._loop.run_in_executor(self._slot_threads, self._run, entry, body)
            future.add_done_callback(lambda finished, entry=entry: self._finished(entry, finished))  # type: ignore[misc]

    def _body(self, entry: Entry, may_use_cache: bool) -> dict[str, Any]:
        request = cast(Connection, entry.owner).request
        body = {
            **request.sampling,
            "prompt": entry.run.tokens,
            "max_tokens": request.max_tokens,
            "id_slot": entry.slot,
            # A prompt read anew gives the same numbers each time, which a caller who sets a seed asks for.
            "cache_prompt": may_use_cache and entry.run.seed is None,
        }
        if entry.run.seed is not None:
            body["seed"] = entry.run.seed
        if request.grammar:
            body["grammar"] = request.grammar
        return body

    def _run(self, entry: Entry, body: dict[str, Any]) -> bool:
        """In a slot's thread: generate one choice. True when it came to its end."""
        connection, index = cast(Connection, entry.owner), entry.run.index
        engine = cast(NativeEngine, self._engine)
        whole, made = False, 0

        def on_token(text: str, output: int, cached: int, finish: str, logprobs: bytes, stop: str) -> bool:
            nonlocal whole, made
            made = max(made, output)
            if entry.cancelled:
                return True
            if output or finish:
                whole = bool(finish)
                logprobs = b"" if logprobs == b"null" else logprobs
                self._post(connection, wire.Piece(index, text, output, cached, finish, logprobs, stop))
            if time.monotonic() < entry.deadline_s:
                return False
            if not finish:
                self._post(connection, wire.Failure("CallTimeout", "The model did not finish before the deadline."))
            return True

        try:
            engine.generate(body, on_token)
        finally:
            with self._outbox_lock:
                self._produced += made
        return whole

    def _post(self, connection: Connection, message: wire.Message) -> None:
        """From a thread: send, waking the loop once for all that gathers until it runs."""
        with self._outbox_lock:
            self._outbox.append((connection, message))
            first = len(self._outbox) == 1
        if first:
            self._loop.call_soon_threadsafe(self._flush)

    def _flush(self) -> None:
        with self._outbox_lock:
            outbox, self._outbox = self._outbox, []
        for connection, message in outbox:
            connection.send(message)

    def _finished(self, entry: Entry, finished: asyncio.Future[bool]) -> None:
        error = finished.exception()
        self._table.release(entry, time.monotonic(), whole=error is None and finished.result())
        self._flush()
        if error is not None and not entry.cancelled:
            detail = str(error) if isinstance(error, EngineError) else f"{type(error).__name__}: {error}"
            complain(f"generation failed: {detail}")
            self._fail(entry, *_public(detail))
        self._dispatch()


def _public(detail: str) -> tuple[str, str]:
    if "grammar" in detail:
        return "BadRequest", "The engine can't turn this JSON schema into a grammar."
    return "UpstreamFailed", "The model's engine failed while it was answering."


class Connection(asyncio.Protocol):
    """One gateway worker's connection; its end cancels what runs on it."""

    request: wire.Generate

    def __init__(self, process: EngineProcess) -> None:
        self._process = process
        self._frames = wire.Frames()
        self._transport: asyncio.Transport | None = None
        self.entries: list[Entry] = []
        self.watching = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        if len(self._process.connections) >= _MAX_CONNECTIONS:
            transport.close()
            return
        self._process.connections.add(self)

    def data_received(self, data: bytes) -> None:
        try:
            for message in self._frames.feed(data):
                self._process.accept(self, message)
        except wire.FrameError:
            cast(asyncio.Transport, self._transport).abort()

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self._process.connections.discard(self)
        self.cancel()

    def cancel(self) -> None:
        """Stop this connection's runs at their next token, or before they begin."""
        entries, self.entries = self.entries, []
        self._process.cancel(entries)

    def send(self, message: wire.Message) -> None:
        # What a reader leaves lying is bounded by the context: a run has no more tokens than that.
        if self._transport is not None:
            self._transport.write(wire.encode(message))


def report(status: str, detail: str = "") -> None:
    """Tell the owner, on standard output."""
    sys.stdout.buffer.write(msgspec.json.encode({"status": status, "detail": detail}) + b"\n")
    sys.stdout.buffer.flush()


def complain(text: str) -> None:
    """Say what went wrong, in a line that the owner tells from llama.cpp's."""
    sys.stderr.write(f"{COMPLAINT}{text}\n")
    sys.stderr.flush()


def _free_bytes() -> int | None:
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except OSError:
        return None
    return None


def _plan(path: Path, options: LlamaCppOptions) -> int:
    """Context tokens for each slot. Raises: BrokenModel, also when the memory is too small."""
    header = read_header(path)
    trained = header.trained_context_tokens
    context = options.context_tokens or min(trained or DEFAULT_CONTEXT_TOKENS, DEFAULT_CONTEXT_TOKENS)
    if trained and context > trained:
        raise BrokenModel(f"context_tokens is {context}, but the model was made for at most {trained}")
    needed, free = header.needed_bytes(context * options.slots), _free_bytes()
    if free is not None and needed > free and not options.gpu_layers:
        raise BrokenModel(
            f"the model needs about {needed // 1_000_000} MB with {options.slots} slots of {context} tokens, and "
            f"{free // 1_000_000} MB are free: lower the options slots or context_tokens, or take a smaller model"
        )
    return context


def _load(path: Path, options: LlamaCppOptions, control_socket: Path) -> NativeEngine:
    engine = NativeEngine(path, options, context_tokens=_plan(path, options), control_socket=control_socket)
    engine.warm()
    return engine


async def serve(arguments: argparse.Namespace) -> int:
    """Listen, load, and work until standard input ends. Returns the exit status."""
    options = msgspec.json.decode(arguments.options, type=LlamaCppOptions)
    loop = asyncio.get_running_loop()
    process = EngineProcess(options)
    arguments.socket.unlink(missing_ok=True)
    server = await loop.create_unix_server(lambda: Connection(process), str(arguments.socket), backlog=512)
    stop = asyncio.Event()
    loop.add_signal_handler(signal.SIGTERM, stop.set)
    loop.add_signal_handler(signal.SIGINT, lambda: None)  # A terminal's Ctrl-C is the owner's to handle.
    threading.Thread(target=_until_owner_ends, args=(loop, stop), daemon=True).start()
    try:
        control = control_path_for(arguments.socket)
        process.loaded(await asyncio.to_thread(_load, arguments.model, options, control))
    except BrokenModel as error:
        report("failed", str(error))
        return _EXIT_CANT_LOAD
    except RuntimeError as error:
        report("failed", f"llama.cpp can't load {arguments.model}: {error}")
        return _EXIT_CANT_LOAD
    report("ready")
    expiry = asyncio.create_task(process.expire())
    await stop.wait()
    expiry.cancel()
    server.close()
    return 0


def _until_owner_ends(loop: asyncio.AbstractEventLoop, stop: asyncio.Event) -> None:
    while os.read(0, 1024):
        pass
    with contextlib.suppress(RuntimeError):
        loop.call_soon_threadsafe(stop.set)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--owner", type=int, required=True)
    parser.add_argument("--socket", type=Path, required=True)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--options", required=True)
    arguments = parser.parse_args()
    die_with(arguments.owner)
    status = asyncio.run(serve(arguments))
    # llama.cpp's threads may be in the middle of a batch; there is nothing to save, so nothing is waited for.
    os._exit(status)


if __name__ == "__main__":
    main()
