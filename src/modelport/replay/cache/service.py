"""The response cache: whether a call's answer is stored, on its way, or to be made."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
import structlog

from modelport.calls import Call
from modelport.errors import ModelportError
from modelport.kit.clock import Clock
from modelport.replay.cache.answers import AnswerStore
from modelport.replay.cache.flight import Flight
from modelport.replay.cache.model import CachedAnswer, Form, Outcome
from modelport.replay.cache.rules import (
    CacheControl,
    Question,
    cache_key,
    is_cacheable,
    parse_cache_control,
    question_of,
)
from modelport.replay.cache.semantic import SemanticIndex
from modelport.replay.cache.ticket import Bypass, Hit, Passenger, Ticket
from modelport.replay.cache.turns import Turns
from modelport.settings import ModelCacheSettings, ModelSettings

# The embedding of a text by the model of this name. Raises: ModelportError.
Embed = Callable[[str, str], Awaitable[Sequence[float]]]

# Nearest questions whose answers are gone already, before we give up on this call's group.
_MAX_STALE = 3

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(CachedAnswer).decode
log = structlog.get_logger("modelport.replay")


@dataclass(slots=True)
class _Asked:
    """One call as the cache sees it."""

    call: Call
    model: ModelSettings
    options: ModelCacheSettings
    control: CacheControl
    key: str
    version: str
    question: Question | None = None
    vector: Sequence[float] | None = None


class ResponseCache:
    """One per process. Concurrency: any number of tasks of one event loop."""

    def __init__(self, store: AnswerStore, *, clock: Clock, embed: Embed, turns: Turns | None = None) -> None:
        self._store = store
        self._clock = clock
        self._embed = embed
        self._turns = turns
        self._loop: asyncio.AbstractEventLoop | None = None
        self._flights: dict[str, Flight] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._indexes: dict[str, SemanticIndex] = {}
        self._configurations: dict[str, str] = {}

    @property
    def held_bytes(self) -> int:
        """What stored answers take up in this process."""
        return self._store.held_bytes

    async def consult(self, call: Call, *, model: ModelSettings, version: str) -> Ticket:
        """How this call, which its key may make, gets its answer. The ticket is to be used or declined.

        A call that asks the same as one that is being let in waits until that is decided. Never raises for a store
        or an embedder that is away: then the answer is made.
        """
        options = model.cache
        assert options is not None
        control = parse_cache_control(call.cache_control)
        if control.no_store or not is_cacheable(call, options):
            return Bypass()
        full_version = f"{version}/{self._configuration(model)}"
        key = cache_key(call, options=options, version=full_version)
        asked = _Asked(call, model, options, control, key, full_version)
        if control.no_cache:
            return self._board(asked, self._flight(asked), "BYPASS")
        while True:
            answer = await self._find(key, asked)
            if answer is not None:
                return self._hit(asked, answer)
            flight = self._flights.get(key)
            if flight is None:
                return await self._begin(asked)
            if await flight.launched():
                if flight.boarding:
                    return self._board(asked, flight, "HIT")
                self._land(key, flight)

    async def _begin(self, asked: _Asked) -> Ticket:
        """Make the answer, unless somebody elsewhere is making it, or one to nearly the same question is there."""
        flight = self._flights[asked.key] = self._flight(asked)
        hit: Ticket | None = None
        try:
            hit = await self._similar(asked) or await self._elsewhere(asked)
        except BaseException:
            flight.give_up()
            raise
        if hit is None:
            return self._board(asked, flight, "MISS")
        flight.give_up()
        return hit

    async def _elsewhere(self, asked: _Asked) -> Ticket | None:
        """The answer that another instance was making; None when it is our turn."""
        if self._turns is None:
            return None
        answer = await self._turns.take(asked.key, look=lambda: self._find(asked.key, asked))
        return None if answer is None else self._hit(asked, answer)

    def _flight(self, asked: _Asked) -> Flight:
        return Flight(
            Form.of(asked.call),
            most_bytes=asked.options.max_bytes,
            store=lambda flight: self._keep(asked, flight),
            land=lambda flight: self._land(asked.key, flight),
            loop=self._running_loop(),
        )

    def _running_loop(self) -> asyncio.AbstractEventLoop:
        """Asked for once: it costs a system call each time."""
        if self._loop is None:
            self._loop = asyncio.get_running_loop()
        return self._loop

    def _board(self, asked: _Asked, flight: Flight, outcome: Outcome) -> Ticket:
        price = asked.options.hit_price_basis_points
        return Passenger(asked.call, flight, outcome=outcome, price_basis_points=price)

    def _hit(self, asked: _Asked, answer: CachedAnswer, similarity: float | None = None) -> Ticket:
        price = asked.options.hit_price_basis_points
        return Hit(asked.call, answer, price_basis_points=price, similarity=similarity)

    async def _find(self, key: str, asked: _Asked) -> CachedAnswer | None:
        """The stored answer, if it is young enough for this call."""
        stored = await self._store.get(key)
        if stored is None:
            return None
        try:
            answer = _decode(stored)
        except msgspec.DecodeError:
            # Another version of the program wrote it.
            return None
        oldest_us = self._clock.now_us() - round(_oldest_s(asked) * 1_000_000)
        return answer if answer.stored_us >= oldest_us else None

    async def _similar(self, asked: _Asked) -> Ticket | None:
        """The answer to the nearest question of the same tenant, if it is near enough."""
        semantic = asked.model.semantic
        if semantic is None:
            return None
        asked.question = question_of(asked.call, options=asked.options, version=asked.version)
        if asked.question is None:
            return None
        try:
            asked.vector = await self._embed(semantic.embedder, asked.question.text)
        except ModelportError as error:
            log.warning("semantic_cache_without_embedder", model=asked.model.id, reason=error.internal or str(error))
            return None
        index, group = self._index(asked.model), asked.question.rest
        for _ in range(_MAX_STALE):
            nearest = index.nearest(group, asked.vector)
            if nearest is None or nearest[1] < semantic.threshold:
                return None
            answer = await self._find(nearest[0], asked)
            if answer is not None:
                return self._hit(asked, answer, min(nearest[1], 1.0))
            index.forget(group, nearest[0])
        return None

    async def _keep(self, asked: _Asked, flight: Flight) -> None:
        if not (flight.complete and flight.deltas):
            return
        last = flight.deltas[-1]
        answer = CachedAnswer(
            stored_us=self._clock.now_us(),
            form=flight.form,
            pieces=[delta.raw for delta in flight.deltas if delta.raw],
            whole=last.whole,
            value=last.value,
            usage=flight.usage,
        )
        await self._store.put(asked.key, _encode(answer), ttl_s=asked.options.ttl_s)
        if asked.question is not None and asked.vector is not None:
            self._index(asked.model).add(asked.question.rest, asked.vector, asked.key)

    def _land(self, key: str, flight: Flight) -> None:
        """Nobody joins this flight any more; where it was this process's turn, it is the next one's."""
        if self._flights.get(key) is flight:
            del self._flights[key]
            if self._turns is not None:
                task = asyncio.create_task(self._turns.give_back(key))
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)

    def _index(self, model: ModelSettings) -> SemanticIndex:
        assert model.semantic is not None
        index = self._indexes.get(model.id)
        if index is None:
            index = self._indexes[model.id] = SemanticIndex(max_entries=model.semantic.max_entries)
        return index

    def _configuration(self, model: ModelSettings) -> str:
        """What changes when the operator changes the model, so that no answer of an earlier one is given."""
        found = self._configurations.get(model.id)
        if found is None:
            text = model.model_dump_json(exclude={"prices", "description", "cache", "semantic"})
            found = self._configurations[model.id] = hashlib.sha256(text.encode()).hexdigest()[:16]
        return found


def _oldest_s(asked: _Asked) -> float:
    age_s: Any = asked.control.max_age_s
    return asked.options.ttl_s if age_s is None else min(age_s, asked.options.ttl_s)
