"""One answer for many calls: stored, on its way, or made elsewhere; and each made answer paid for by exactly one."""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import Any

import msgspec
import pytest

from modelport.calls import Call, Delta, Operation, Usage
from modelport.errors import ModelLoading, UpstreamFailed
from modelport.kit.clock import ManualClock, SystemClock
from modelport.replay.cache.answers import AnswerStore, MemoryAnswers, SharedAnswers
from modelport.replay.cache.model import Share
from modelport.replay.cache.service import ResponseCache
from modelport.replay.cache.ticket import Ticket
from modelport.replay.cache.turns import Turns
from modelport.requests import ChatRequest
from modelport.settings import ModelSettings
from modelport.state.redis import RedisState
from tests.store.metering import caller
from tests.upstream import chat_chunk, event
from tests.waiting import wait_until

_numbers = itertools.count(1)
_namespaces = (f"cache{number}" for number in itertools.count())


def model(semantic: dict[str, Any] | None = None, **cache: Any) -> ModelSettings:
    return ModelSettings(id="m", backend="sandbox", cache=cache, semantic=semantic)  # type: ignore[arg-type]


def call(text: str = "hi", *, who: str = "org_alice", cache_control: str | None = None, **members: Any) -> Call:
    body = json.dumps({"model": "m", "messages": [{"role": "user", "content": text}], **members}).encode()
    request = msgspec.json.decode(body, type=ChatRequest)
    return Call(
        id=f"req_{next(_numbers)}",
        caller=caller(who),
        endpoint="/v1/chat/completions",
        operation=Operation.CHAT,
        model="m",
        request=request,
        fields=msgspec.json.decode(body, type=dict[str, msgspec.Raw]),
        started_us=0,
        started_s=0.0,
        deadline_s=60.0,
        stream=bool(request.stream),
        cache_control=cache_control,
    )


@dataclass
class Model:
    """A model that answers in three words, one at each `go`, and counts who asks it. `open` lets all words go."""

    started: int = 0
    stopped: int = 0
    open: bool = True
    words: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(0))
    error: Exception | None = None

    def go(self) -> None:
        self.words.release()

    async def __call__(self) -> AsyncGenerator[Delta]:
        self.started += 1
        try:
            for number in range(3):
                if not self.open:
                    await self.words.acquire()
                yield Delta(event(chat_chunk({"content": f"w{number} "})), usage=Usage(7, number + 1))
            if self.error is not None:
                raise self.error
            yield Delta(event(chat_chunk({}, finish="stop")), usage=Usage(7, 3), timed=False)
        except (asyncio.CancelledError, GeneratorExit):
            self.stopped += 1
            raise


async def read(ticket: Ticket, source: Model) -> tuple[str, Share]:
    """The whole answer and what it costs, as the corridor goes about it."""
    text, seen = b"", Usage()
    async for delta in ticket.read(source):
        text += delta.raw
        seen = delta.usage or seen
    assert not ticket.leave()
    share = ticket.share(seen)
    await ticket.close()
    return text.decode(), share


async def ask(cache: ResponseCache, source: Model, asked: Call, settings: ModelSettings) -> tuple[Ticket, str, Share]:
    ticket = await cache.consult(asked, model=settings, version="1")
    return ticket, *await read(ticket, source)


async def no_embedder(model: str, text: str) -> Sequence[float]:
    raise ModelLoading()


@dataclass
class Place:
    """A cache, and one of another process; they share what is stored only on Redis."""

    cache: ResponseCache
    other: ResponseCache
    shared: bool


@pytest.fixture(params=["memory", "redis"])
async def place(request: pytest.FixtureRequest) -> AsyncIterator[Place]:
    clock = SystemClock()
    async with AsyncExitStack() as stack:
        made = []
        namespace = next(_namespaces)
        for _ in range(2):
            store: AnswerStore = MemoryAnswers(clock, max_bytes=1_000_000)
            turns = None
            if request.param == "redis":
                state = RedisState(request.getfixturevalue("redis_url"), namespace=namespace)
                await state.start()
                stack.push_async_callback(state.close)
                store, turns = SharedAnswers(state), Turns(state, clock=clock, wait_s=30.0)
            made.append(ResponseCache(store, clock=clock, embed=no_embedder, turns=turns))
        yield Place(made[0], made[1], request.param == "redis")


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def cache(clock: ManualClock) -> ResponseCache:
    return ResponseCache(MemoryAnswers(clock, max_bytes=1_000_000), clock=clock, embed=no_embedder)


class TestStored:
    async def test_the_second_call_is_answered_from_the_store(self, place: Place) -> None:
        source, settings = Model(), model(hit_price_basis_points=2_500)
        first, answer, paid = await ask(place.cache, source, call(), settings)
        second, again, share = await ask(place.cache, source, call(user="someone", stream=False), settings)
        assert (first.outcome, second.outcome, source.started) == ("MISS", "HIT", 1)
        assert again == answer
        assert (paid, share) == (Share(Usage(7, 3)), Share(Usage(7, 3), 2_500, free=True))

    async def test_another_process_has_it_where_the_store_is_shared(self, place: Place) -> None:
        source, settings = Model(), model()
        await ask(place.cache, source, call(), settings)
        ticket, *_ = await ask(place.other, source, call(), settings)
        assert (ticket.outcome, source.started) == (("HIT", 1) if place.shared else ("MISS", 2))

    async def test_mallory_gets_nothing_of_alices(self, place: Place) -> None:
        source, settings = Model(), model()
        await ask(place.cache, source, call(), settings)
        ticket, *_ = await ask(place.cache, source, call(who="org_mallory"), settings)
        assert (ticket.outcome, source.started) == ("MISS", 2)

    async def test_what_failed_or_broke_off_is_not_stored(self, cache: ResponseCache) -> None:
        source, settings = Model(error=UpstreamFailed()), model()
        for number in (1, 2):
            with pytest.raises(UpstreamFailed):
                await ask(cache, source, call(), settings)
            assert source.started == number
        assert cache.held_bytes == 0

    async def test_an_answer_that_is_too_large_is_not_stored(self, cache: ResponseCache) -> None:
        source, settings = Model(), model(max_bytes=1024)
        long = "x" * 400
        source_text = [event(chat_chunk({"content": long})) for _ in range(5)]

        async def large() -> AsyncGenerator[Delta]:
            source.started += 1
            for raw in source_text:
                yield Delta(raw, usage=Usage(1, 1))

        for _ in range(2):
            ticket = await cache.consult(call(), model=settings, version="1")
            assert [delta.raw async for delta in ticket.read(large)] == source_text
            await ticket.close()
        assert (source.started, cache.held_bytes) == (2, 0)

    async def test_it_is_made_anew_after_its_time_and_for_another_configuration(
        self, cache: ResponseCache, clock: ManualClock
    ) -> None:
        source, settings = Model(), model(ttl_s=60)
        await ask(cache, source, call(), settings)
        clock.advance(59)
        assert (await ask(cache, source, call(), settings))[0].outcome == "HIT"
        clock.advance(1)
        assert (await ask(cache, source, call(), settings))[0].outcome == "MISS"
        changed = ResponseCache(cache._store, clock=clock, embed=no_embedder)
        assert (await ask(changed, source, call(), settings))[0].outcome == "HIT"
        reworded = settings.model_copy(update={"options": {"system_prompt": "Be brief."}})
        changed = ResponseCache(cache._store, clock=clock, embed=no_embedder)
        assert (await ask(changed, source, call(), reworded))[0].outcome == "MISS"

    async def test_cache_control_is_honoured(self, cache: ResponseCache, clock: ManualClock) -> None:
        source, settings = Model(), model(ttl_s=600)

        async def outcome(cache_control: str | None = None) -> str:
            return (await ask(cache, source, call(cache_control=cache_control), settings))[0].outcome

        assert [await outcome("no-store"), await outcome()] == ["BYPASS", "MISS"]
        clock.advance(100)
        assert [await outcome("max-age=100"), await outcome("max-age=99")] == ["HIT", "MISS"]
        clock.advance(10)
        # Made anew, and stored: the next one gets the young answer.
        assert [await outcome("no-cache"), await outcome("max-age=1")] == ["BYPASS", "HIT"]
        assert source.started == 4

    async def test_each_form_of_the_answer_comes_from_the_same_store(self, cache: ResponseCache) -> None:
        source, settings = Model(), model()
        await ask(cache, source, call(), settings)
        usage = call(stream=True, stream_options={"include_usage": True})
        _, stream, _ = await ask(cache, source, usage, settings)
        *chunks, last = [json.loads(line[6:]) for line in stream.split("\n") if line]
        assert [chunk["usage"] for chunk in chunks] == [None] * 4
        assert last["usage"]["completion_tokens"] == 3
        assert source.started == 1


class TestStampedes:
    async def test_a_hundred_at_once_make_one_call(self, place: Place) -> None:
        source, settings = Model(open=False), model()
        places = [place.cache, place.other] if place.shared else [place.cache]
        asking = [
            asyncio.create_task(ask(places[number % len(places)], source, call(stream=number % 2 == 0), settings))
            for number in range(100)
        ]
        await wait_until(lambda: source.started > 0, "somebody leads")
        for _ in range(3):
            source.go()
        answers = await asyncio.gather(*asking)
        assert source.started == 1
        assert len({text for _, text, _ in answers}) == 1
        assert sorted(ticket.outcome for ticket, *_ in answers) == ["HIT"] * 99 + ["MISS"]
        assert sorted(share.free for *_, share in answers) == [False] + [True] * 99

    async def test_followers_get_the_words_as_they_come(self, cache: ResponseCache) -> None:
        source, settings = Model(open=False), model()
        leader, follower = await self.two(cache, source, settings)
        begun, heard = leader.read(source), follower.read(source)
        for _ in range(3):
            source.go()
            assert (await anext(begun)).raw == (await anext(heard)).raw
        assert source.started == 1

    async def test_a_leader_that_hangs_up_leaves_the_answer_to_the_followers(self, cache: ResponseCache) -> None:
        """And pays for all of it once it has ended, or hanging up would be a way not to pay."""
        source, settings = Model(open=False), model()
        leader, follower = await self.two(cache, source, settings)
        late = await cache.consult(call(), model=settings, version="1")
        begun = leader.read(source)
        source.go()
        await anext(begun)
        await begun.aclose()
        assert leader.leave()
        landing = asyncio.create_task(leader.landed())
        source.go()
        source.go()
        for ticket in (follower, late):
            text, share = await read(ticket, source)
            assert (text.count("data:"), share) == (4, Share(Usage(7, 3), 0, free=True))
        await landing
        assert leader.share(Usage(7, 1)) == Share(Usage(7, 3))
        assert (source.started, source.stopped) == (1, 0)

    async def test_the_model_stops_when_nobody_listens_any_more(self, cache: ResponseCache) -> None:
        source, settings = Model(open=False), model()
        leader, follower = await self.two(cache, source, settings)
        begun, heard = leader.read(source), follower.read(source)
        source.go()
        await anext(begun)
        await anext(heard)
        for stream in (begun, heard):
            await stream.aclose()
        assert leader.leave()
        assert not follower.leave()
        await follower.close()
        await leader.close()
        assert source.stopped == 1
        assert leader.share(Usage()) == Share(Usage(7, 1))
        source.open = True
        assert (await ask(cache, source, call(), settings))[0].outcome == "MISS"

    async def test_one_failure_is_everybody_s_and_the_next_call_tries_anew(self, cache: ResponseCache) -> None:
        source, settings = Model(open=False, error=UpstreamFailed()), model()
        leader, follower = await self.two(cache, source, settings)
        asking = [asyncio.create_task(read(ticket, source)) for ticket in (leader, follower)]
        for _ in range(3):
            source.go()
        results = await asyncio.gather(*asking, return_exceptions=True)
        assert [type(result) for result in results] == [UpstreamFailed] * 2
        for ticket in (leader, follower):
            await ticket.close()
        source.open, source.error = True, None
        assert (await ask(cache, source, call(), settings))[0].outcome == "MISS"
        assert source.started == 2

    async def test_who_is_refused_hands_the_lead_to_the_next(self, cache: ResponseCache) -> None:
        """A leader over its limits takes nobody with it, and who leads next reserves as a leader does."""
        source, settings = Model(), model()
        refused = await cache.consult(call(), model=settings, version="1")
        waiting = asyncio.create_task(ask(cache, source, call(), settings))
        await asyncio.sleep(0)
        refused.decline()
        ticket, _, share = await waiting
        assert (ticket.outcome, ticket.free, share.free) == ("MISS", False, False)

    async def test_a_slow_reader_of_a_large_answer_holds_it_back_and_memory_stays_bounded(
        self, cache: ResponseCache
    ) -> None:
        settings, sent = model(max_bytes=1024), 0

        async def endless() -> AsyncGenerator[Delta]:
            nonlocal sent
            while True:
                sent += 1
                yield Delta(b"x" * 100)

        ticket = await cache.consult(call(), model=settings, version="1")
        stream = ticket.read(endless)
        for number in range(1, 50):
            await anext(stream)
            assert sent <= number + 12
        await stream.aclose()
        await ticket.close()

    async def two(self, cache: ResponseCache, source: Model, settings: ModelSettings) -> tuple[Ticket, Ticket]:
        """A leader, and a follower who came while it was being let in."""
        leader = await cache.consult(call(), model=settings, version="1")
        waiting = asyncio.create_task(cache.consult(call(), model=settings, version="1"))
        await asyncio.sleep(0)
        # It takes its source when it begins to read; until it is closed, nothing is started twice.
        self.begin(leader, source)
        return leader, await waiting

    def begin(self, leader: Ticket, source: Model) -> None:
        stream = leader.read(source)
        leader.read = lambda _: stream  # type: ignore[method-assign]


class TestTurns:
    async def test_an_instance_that_died_holds_nobody_up_for_long(self, redis_url: str) -> None:
        """The wait is bounded; then the answer is made here as well."""
        clock, source = SystemClock(), Model()
        states = [RedisState(redis_url, namespace="turns-died") for _ in range(2)]
        for state in states:
            await state.start()
        made = [
            ResponseCache(
                SharedAnswers(state), clock=clock, embed=no_embedder, turns=Turns(state, clock=clock, wait_s=0.05)
            )
            for state in states
        ]
        dead = await made[0].consult(call(), model=model(), version="1")
        assert dead.outcome == "MISS"
        ticket, *_ = await ask(made[1], source, call(), model())
        assert (ticket.outcome, source.started) == ("MISS", 1)
        for state in states:
            await state.close()

    async def test_without_the_state_every_call_is_made(self, redis_url: str) -> None:
        clock, source = SystemClock(), Model()
        state = RedisState(redis_url, namespace="turns-away")
        cache = ResponseCache(
            SharedAnswers(state), clock=clock, embed=no_embedder, turns=Turns(state, clock=clock, wait_s=30)
        )
        for _ in range(2):
            assert (await ask(cache, source, call(), model()))[0].outcome == "MISS"
        assert source.started == 2


class TestSemantic:
    async def embed(self, model: str, text: str) -> Sequence[float]:
        """Texts that begin with the same word are near to each other."""
        assert model == "e"
        return [float(text.startswith("cat")), float(text.startswith("dog")), 0.1 * len(text)]

    def cache(self, clock: ManualClock) -> ResponseCache:
        return ResponseCache(MemoryAnswers(clock, max_bytes=1_000_000), clock=clock, embed=self.embed)

    async def test_nearly_the_same_question_gets_the_answer_and_is_told_how_near(self, clock: ManualClock) -> None:
        cache, source = self.cache(clock), Model()
        settings = model({"threshold": 0.9, "embedder": "e"})
        for text, outcome in (("cats?", "MISS"), ("cats ??", "HIT"), ("dogs?", "MISS"), ("cats?", "HIT")):
            ticket, *_ = await ask(cache, source, call(text), settings)
            assert ticket.outcome == outcome
            assert (ticket.similarity is not None) == (text == "cats ??")
        assert source.started == 2

    async def test_everything_else_must_be_equal(self, clock: ManualClock) -> None:
        cache, source = self.cache(clock), Model()
        settings = model({"threshold": 0.9, "embedder": "e"})
        await ask(cache, source, call("cats?"), settings)
        for other in (call("cats ?", seed=1), call("cats ?", who="org_mallory"), call("cats ?", max_tokens=1)):
            assert (await ask(cache, source, other, settings))[0].outcome == "MISS"

    async def test_an_answer_that_is_gone_is_not_found_by_its_question(self, clock: ManualClock) -> None:
        cache, source = self.cache(clock), Model()
        settings = model({"threshold": 0.9, "embedder": "e"}, ttl_s=60)
        await ask(cache, source, call("cats?"), settings)
        clock.advance(60)
        assert (await ask(cache, source, call("cats ?"), settings))[0].outcome == "MISS"

    async def test_without_the_embedder_only_equal_questions_hit(self, cache: ResponseCache) -> None:
        source, settings = Model(), model({"embedder": "e"})
        for text, outcome in (("cats?", "MISS"), ("cats ?", "MISS"), ("cats?", "HIT")):
            assert (await ask(cache, source, call(text), settings))[0].outcome == outcome
