"""The gateway's half: a backend whose engine is another process on this machine."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path

import msgspec

from modelport.backends.llamacpp import schemas, wire
from modelport.backends.llamacpp import tools as toolkit
from modelport.backends.llamacpp.answer import Answer
from modelport.backends.llamacpp.connection import Connections, Gone, error_of
from modelport.backends.llamacpp.engine import read_report
from modelport.backends.llamacpp.options import LlamaCppOptions
from modelport.backends.llamacpp.prompting import messages_for
from modelport.backends.llamacpp.sampling import DEFAULT_SAMPLING, sampling_for, seed_for
from modelport.backends.protocol import Health, Status
from modelport.calls import Call, Delta
from modelport.dialect.openai import ChunkWriter
from modelport.errors import BadRequest, CallTimeout, ContextTooLong, ModelLoading, ModelportError, UpstreamFailed
from modelport.kit.clock import Clock, SystemClock
from modelport.requests import ChatRequest, CompletionRequest, GenerationRequest

_RECONNECT_S = 0.1
# Prepared prompts of calls between their reservation and their run; a call refused in between leaves one behind.
_MAX_PREPARED = 512
_STOPPED = "The model's engine stopped while it was answering. It is being started again; send the request once more."


@dataclass(slots=True)
class _Prepared:
    """A call as the engine takes it."""

    prompts: list[list[int]]
    texts: list[str] = field(default_factory=list)
    tools: toolkit.Tools | None = None
    schema: schemas.Schema | None = None
    grammar: str = ""


class LlamaCppBackend:
    """One model version on the engine that listens at `socket_path`.

    Engines may start, die and return as they like: `start` watches theirs from afar, and a call is answered, or
    told plainly why not.
    """

    kind = "llamacpp"

    def __init__(self, socket_path: Path, *, options: LlamaCppOptions, clock: Clock | None = None) -> None:
        self._socket_path = socket_path
        self._options = options
        self._clock = clock or SystemClock()
        self._connections = Connections(socket_path)
        self._state = wire.State("loading", "the engine has not been reached yet")
        self._watcher: asyncio.Task[None] | None = None
        self._prepared: dict[str, _Prepared] = {}
        self._fingerprint = _fingerprint(options)

    async def start(self) -> None:
        """Begin to watch the engine; `health` follows it from then on."""
        if self._watcher is None:
            self._watcher = asyncio.create_task(self._watch(), name=f"watch {self._socket_path.name}")

    async def close(self) -> None:
        watcher, self._watcher = self._watcher, None
        if watcher is not None:
            watcher.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await watcher
        self._connections.close()

    def health(self) -> Health:
        return Health(Status(self._state.status), self._state.detail)

    @property
    def context_tokens(self) -> int:
        """What prompt and answer may have together; 0 until the engine is ready."""
        return self._state.context_tokens

    async def stats(self) -> wire.Stats:
        """The engine's queue and slots now. Raises: ModelLoading, UpstreamFailed."""
        answer = await self._ask(wire.AskStats())
        assert isinstance(answer, wire.Stats)
        return answer

    async def count_input(self, call: Call, *, model: str) -> int:
        """Exact: the prompt is rendered and tokenized by the model's own means, and kept for `stream`."""
        prepared = await self._prepare(call)
        if len(self._prepared) >= _MAX_PREPARED:
            del self._prepared[next(iter(self._prepared))]
        self._prepared[call.id] = prepared
        return sum(map(len, prepared.prompts))

    async def stream(self, call: Call, *, model: str, max_output_tokens: int | None) -> AsyncGenerator[Delta]:
        """The answer's chunks; `usage` is exact on every one."""
        request = call.request
        prepared = self._prepared.pop(call.id, None) or await self._prepare(call)
        generate = self._generate(call, prepared, max_output_tokens)
        answer = Answer(
            call,
            prompts=[len(prompt) for prompt in prepared.prompts],
            n=request.n or 1,
            tools=prepared.tools,
            schema=prepared.schema,
        )
        writer = ChunkWriter(call, fingerprint=self._fingerprint)
        try:
            connection = await self._connections.take()
        except Gone:
            raise self._not_there() from None
        whole = False
        try:
            connection.send(generate)
            while not answer.finished:
                piece = await connection.receive()
                if isinstance(piece, wire.Failure):
                    raise error_of(piece)
                assert isinstance(piece, wire.Piece)
                echoed = prepared.texts[piece.index // (request.n or 1)] if prepared.texts else ""
                delta = answer.take(piece, writer, before=echoed)
                whole = answer.finished and bool(piece.finish)
                yield delta
        except Gone:
            raise UpstreamFailed(_STOPPED) from None
        finally:
            if whole:
                self._connections.give_back(connection)
            else:
                connection.close()

    def _generate(self, call: Call, prepared: _Prepared, max_output_tokens: int | None) -> wire.Generate:
        request = call.request
        room = min(self._room(request, prompt) for prompt in prepared.prompts)
        bound = request.output_bound or max_output_tokens or room
        n = request.n or 1
        runs = [
            wire.Run(prompt * n + choice, tokens, seed_for(request, prompt * n + choice))
            for prompt, tokens in enumerate(prepared.prompts)
            for choice in range(n)
        ]
        timeout_s = call.deadline_s - self._clock.monotonic_s()
        if timeout_s <= 0:
            raise CallTimeout("The call's deadline has passed.")
        return wire.Generate(
            runs,
            min(bound, room),
            sampling_for(request, self._options, structured=bool(prepared.grammar)),
            timeout_s,
            call.caller.organization_id,
            prepared.grammar,
        )

    def _room(self, request: GenerationRequest, tokens: list[int]) -> int:
        """Tokens left for an answer after this prompt. Raises: ContextTooLong."""
        context = self._state.context_tokens
        if len(tokens) < context:
            return context - len(tokens)
        raise ContextTooLong(
            f"This model's context holds {context} tokens, the answer included; the prompt has {len(tokens)}. "
            "Shorten it.",
            param="messages" if isinstance(request, ChatRequest) else "prompt",
        )

    async def _prepare(self, call: Call) -> _Prepared:
        """Check the request, and have its prompts rendered and tokenized. Raises: BadRequest, Unavailable."""
        request = call.request
        if isinstance(request, ChatRequest):
            prepared, question = self._prepare_chat(request)
        elif isinstance(request, CompletionRequest):
            prepared, question = _Prepared([]), _completion_question(request)
        else:
            raise BadRequest("This model chats and completes text; it does nothing else.", param="model")
        sampling_for(request, self._options)
        answer = await self._ask(question)
        assert isinstance(answer, wire.Prepared)
        prepared.prompts, prepared.texts = answer.prompts, answer.texts
        for prompt in prepared.prompts:
            self._room(request, prompt)
        return prepared

    def _prepare_chat(self, request: ChatRequest) -> tuple[_Prepared, wire.Prepare]:
        tools = toolkit.parse(request.tools, request.tool_choice, parallel=request.parallel_tool_calls is True)
        schema = _schema_of(request.response_format)
        if tools is not None and (schema is not None or request.logprobs):
            raise BadRequest(
                "This engine can't hold an answer to tools and to response_format or logprobs at one time.",
                param="response_format" if schema is not None else "logprobs",
            )
        system_prompt = self._options.system_prompt
        messages = messages_for(request.messages, tools=tools, system_prompt=system_prompt)
        grammar = tools.grammar if tools else schema.grammar if schema else ""
        return _Prepared([], [], tools, schema, grammar), wire.Prepare(messages=messages)

    async def _ask(self, question: wire.Message) -> wire.Message:
        self._check_ready()
        try:
            return await self._connections.ask(question)
        except Gone:
            raise self._not_there() from None

    def _check_ready(self) -> None:
        if self._state.status != Status.READY:
            raise self._not_there()

    def _not_there(self) -> ModelportError:
        if self._state.status == Status.FAILED:
            return UpstreamFailed(
                "The model could not be loaded; its operator can see why.", internal=self._state.detail
            )
        return ModelLoading("The model is still loading. Try again in a moment.")

    async def _watch(self) -> None:
        """Follow the engine's state; where nobody listens, what its owner left beside the socket."""
        while True:
            watch = Connections(self._socket_path)
            with contextlib.suppress(Gone):
                connection = await watch.take()
                try:
                    connection.send(wire.Watch())
                    while True:
                        state = await connection.receive()
                        if isinstance(state, wire.State):
                            self._state = state
                finally:
                    connection.close()
            report = read_report(self._socket_path)
            if report is not None and report.status == Status.FAILED:
                self._state = wire.State(report.status, report.detail)
            else:
                self._state = wire.State("loading", report.detail if report else "the engine is not there yet")
            await asyncio.sleep(_RECONNECT_S)


def _completion_question(request: CompletionRequest) -> wire.Prepare:
    if request.suffix:
        raise BadRequest("This model can't write towards a suffix.", param="suffix")
    if request.best_of not in (None, request.n or 1):
        raise BadRequest("best_of other than n is not supported.", param="best_of")
    if request.echo and request.logprobs is not None:
        raise BadRequest("This engine has no logprobs of the prompt: leave out echo or logprobs.", param="echo")
    prompts = _prompts(request.prompt)
    if not prompts or not all(prompts):
        raise BadRequest("The prompt is empty.", param="prompt")
    if any(token < 0 for prompt in prompts if not isinstance(prompt, str) for token in prompt):
        raise BadRequest("Tokens are not negative.", param="prompt")
    return wire.Prepare(prompts=prompts, texts=bool(request.echo))


def _prompts(prompt: str | list[str | int | list[int]]) -> list[str | list[int]]:
    if isinstance(prompt, str):
        return [prompt]
    tokens = [item for item in prompt if isinstance(item, int)]
    if not tokens:
        return [item for item in prompt if not isinstance(item, int)]
    if len(tokens) < len(prompt):
        raise BadRequest("A prompt is text, tokens, or a list of either.", param="prompt")
    return [tokens]


def _schema_of(response_format: dict[str, object] | None) -> schemas.Schema | None:
    """What the answer has to follow. Raises: BadRequest."""
    if response_format is None or response_format.get("type") == "text":
        return None
    if response_format.get("type") == "json_object":
        return schemas.any_object()
    wanted = response_format.get("json_schema")
    if response_format.get("type") != "json_schema" or not isinstance(wanted, dict):
        raise BadRequest(
            "response_format is of type text, json_object, or json_schema with a json_schema.", param="response_format"
        )
    if "schema" not in wanted:
        raise BadRequest("json_schema has no schema.", param="response_format.json_schema")
    return schemas.check(
        wanted["schema"], param="response_format.json_schema.schema", strict=wanted.get("strict") is not False
    )


def _fingerprint(options: LlamaCppOptions) -> str:
    """Changes with whatever can change an answer to the same seed: the engine and how it is set."""
    try:
        version = metadata.version("xllamacpp")
    except metadata.PackageNotFoundError:
        version = ""
    seen = msgspec.json.encode([version, options, DEFAULT_SAMPLING])
    return f"fp_{hashlib.sha256(seen).hexdigest()[:12]}"
