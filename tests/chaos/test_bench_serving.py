"""The bench of model servers counts what it says: right numbers in time, and no other answer as one of them."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import itertools
import os
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import numpy as np
import pytest
from bench.build import build_tools
from bench.calls import Loaded
from bench.serving.figures import (
    CLOSED,
    ONE,
    OPEN,
    OURS,
    OURS_IN_TIME,
    SIXTY_FOUR,
    Figures,
    Life,
    Load,
    Measurement,
    Raw,
    Round,
    Tokens,
    verdicts,
)
from bench.serving.measure import Bench
from bench.serving.models import make_models
from bench.serving.peers import PEERS
from bench.serving.report import Run, render
from bench.serving.sending import Sender, write_cases

Answer = Callable[[int, float], tuple[int, bytes]]
_SECONDS = 0.4
CASES = [(np.float32(value).tobytes(), np.array([value, -value], np.float32)) for value in (1.5, 2.5, 3.5)]


def binary(number: int, value: float) -> tuple[int, bytes]:
    return 200, b"head" + np.array([value, -value], "<f4").tobytes()


def text(number: int, value: float) -> tuple[int, bytes]:
    return 200, f'{{"other": [9], "data": [[{value}, {-value}]], "id": "x"}}'.encode()


def every_third(other: Answer) -> Answer:
    return lambda number, value: other(number, value) if number % 3 == 2 else binary(number, value)


@contextlib.asynccontextmanager
async def model_server(answer: Answer, *, after_s: float = 0.0) -> AsyncIterator[int]:
    """Answers each request, whose body is one float, with what `answer` makes of it."""
    numbers = itertools.count()
    serving: set[asyncio.Task[None]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        serving.add(task)
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                size = int(head.lower().partition(b"content-length:")[2].split()[0])
                (value,) = np.frombuffer(await reader.readexactly(size), "<f4")
                loop = asyncio.get_running_loop()
                answered = loop.create_future()
                loop.call_later(after_s, answered.set_result, None)
                await answered
                status, body = answer(next(numbers), float(value))
                writer.write(f"HTTP/1.1 {status} X\r\ncontent-length: {len(body)}\r\n\r\n".encode() + body)
                await writer.drain()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        yield server.sockets[0].getsockname()[1]
    await asyncio.gather(*serving)


async def load(
    folder: Path, answer: Answer, *, after_s: float = 0.0, marker: str = "", clients: int = 2, rate: float = 0
) -> Loaded:
    file = folder / "cases"
    write_cases(CASES, file)
    program = build_tools().load
    async with model_server(answer, after_s=after_s) as port:
        # In time is whatever comes, except where calls are given a pace: other programs may hold this one up.
        sender = Sender(program, 0, port, "/", file, tolerance=1e-3, marker=marker, slo_ms=200 if rate else 60_000)
        return await asyncio.to_thread(sender.send, seconds=_SECONDS, clients=clients, rate=rate)


@pytest.mark.parametrize(("answer", "marker"), [(binary, ""), (text, '"data":')])
async def test_right_numbers_are_right_in_binary_and_as_text(tmp_path: Path, answer: Answer, marker: str) -> None:
    loaded = await load(tmp_path, answer, marker=marker)
    assert loaded.calls > 10
    assert (loaded.wrong, loaded.errors, loaded.in_time) == (0, 0, loaded.calls)
    assert loaded.right_per_s > 0


@pytest.mark.parametrize(
    "wrong",
    [
        lambda number, value: binary(number, value + 0.01),
        lambda number, value: binary(number, 1.5 if value > 1.5 else 2.5),
        lambda number, value: (200, b""),
        lambda number, value: (500, binary(number, value)[1]),
    ],
    ids=["a number that is off", "another request's answer", "nothing", "another status"],
)
async def test_every_answer_that_is_not_right_is_counted_as_wrong(tmp_path: Path, wrong: Answer) -> None:
    loaded = await load(tmp_path, every_third(wrong), clients=1)
    assert loaded.wrong == loaded.calls // 3 > 0
    assert loaded.refused == 0
    assert loaded.in_time == loaded.calls - loaded.wrong


@pytest.mark.parametrize(
    "body",
    [b'{"data": [[1.5]]}', b'{"data": [[1.5, -1.5, 7.0]]}', b'{"data": "1.5, -1.5"}', b'{"data": [[1.5, nil]]}', b"[]"],
)
async def test_text_with_fewer_more_or_no_numbers_is_wrong(tmp_path: Path, body: bytes) -> None:
    loaded = await load(tmp_path, lambda number, value: (200, body), marker='"data":')
    assert loaded.wrong == loaded.calls > 0


@pytest.mark.parametrize("status", [429, 503])
async def test_refusals_are_told_apart_from_wrong_answers(tmp_path: Path, status: int) -> None:
    loaded = await load(tmp_path, every_third(lambda number, value: (status, b"{}")), clients=1)
    assert loaded.refused == loaded.wrong == loaded.calls // 3 > 0


async def test_in_open_loop_calls_come_at_their_own_pace_and_latency_counts_from_when_they_were_due(
    tmp_path: Path,
) -> None:
    loaded = await load(tmp_path, binary, after_s=0.25, clients=5, rate=50)
    # A machine that is held up at the end asks for fewer.
    assert 10 < loaded.due <= round(50 * _SECONDS)
    assert loaded.unsent == loaded.due - loaded.calls > 0
    assert loaded.in_time == 0
    assert loaded.p50_ms >= 250
    patient = await load(tmp_path, binary, after_s=0.05, clients=50, rate=100)
    assert (patient.wrong, patient.calls + patient.unsent) == (0, patient.due)


def test_modelport_itself_is_measured_with_right_answers_only(tmp_path: Path) -> None:
    cores = sorted(os.sched_getaffinity(0))
    bench = Bench(build_tools().load, (cores[0], cores[-1]), tmp_path, seconds=0.3, least_open_s=0.5)
    _, tabular = make_models(tmp_path)
    (peer,) = [peer for peer in PEERS if peer.name == OURS]
    found = Round(raw={tabular.name: bench.raw(tabular)})
    bench.serve(peer, tabular, found)
    loads = found.loads[tabular.name][OURS]
    assert set(loads) == {"1", "16", "64", "open"}
    for load in loads.values():
        assert (load.wrong, load.answers > 0) == (0, True)
    life = found.lives[tabular.name][OURS]
    assert life.ready_s > 0
    assert life.idle_bytes > 10_000_000
    assert life.lag_p99_ms is not None
    assert found.raw[tabular.name].lone_ms > 0


def measured(per_s: float = 100.0, **changes: object) -> Measurement:
    facts: dict[str, object] = {
        "per_s": per_s,
        "p50_ms": 10.0,
        "p99_ms": 12.0,
        "in_time_per_s": per_s,
        "due_per_s": 0.0,
        "answers": 100,
        "refused": 0,
        "wrong": 0,
        "errors": 0,
        "unsent": 0,
        "cpu_us_per_call": 1.0,
        "foreign_share": 0.0,
    }
    return Measurement(**(facts | changes))  # type: ignore[arg-type]


def one_round(ours: Measurement, theirs: Measurement, load: Load = SIXTY_FOUR) -> Figures:
    loads = {"image": {OURS: {load.name: ours}, OURS_IN_TIME: {load.name: ours}, "mosec": {load.name: theirs}}}
    return Figures([Round(raw={"image": Raw(9.0, 110.0, 110.0)}, loads=loads)])


def verdict(figures: Figures, words: str) -> tuple[float | None, bool | None]:
    (found,) = [one for one in verdicts(figures) if words in one.target]
    return found.found, found.holds


def test_the_lead_is_over_the_best_other_of_the_same_round() -> None:
    assert verdict(one_round(measured(105), measured(100)), "image, 64 clients: answers/s") == (1.05, True)
    assert verdict(one_round(measured(95), measured(100)), "image, 64 clients: answers/s") == (0.95, False)
    slower = one_round(measured(p99_ms=24.0), measured())
    assert verdict(slower, "image, 64 clients: p99") == (0.5, False)


def test_wrong_answers_prove_nothing_and_a_busy_machine_only_what_needs_no_quiet() -> None:
    assert verdict(one_round(measured(200, wrong=1), measured(100)), "image, 64 clients: answers/s")[0] is None
    busy = one_round(measured(105), measured(100, foreign_share=0.5))
    assert verdict(busy, "image, 64 clients: answers/s") == (1.05, None)


def test_overload_is_judged_by_right_answers_in_time_as_a_share_of_capacity() -> None:
    ours = measured(100, due_per_s=150.0, in_time_per_s=96.0, refused=50)
    assert verdict(one_round(ours, measured(), OPEN), "image, 1.5 × overload") == (0.96, True)
    assert (
        verdict(one_round(dataclasses.replace(ours, in_time_per_s=9.0), ours, OPEN), "image, 1.5 × overload")[1]
        is False
    )


def test_a_lone_call_may_take_a_share_of_the_models_time_and_two_milliseconds() -> None:
    words = "image, 1 client: over the model's own time: at most 15 %"
    assert verdict(one_round(measured(p50_ms=12.3), measured(), ONE), words)[1] is True
    assert verdict(one_round(measured(p50_ms=12.5), measured(), ONE), words)[1] is False


def test_the_page_says_what_was_not_measured_and_what_went_wrong() -> None:
    figures = one_round(measured(refused=3, errors=2), measured(wrong=7))
    figures.rounds[0].tokens = [Tokens(4, 100.0, 98.0)]
    figures.rounds[0].lives = {"image": {OURS: Life(2.0, 0.001, 10**8, 10**8, 4.0)}}
    run = Run(
        command="c",
        machine="m",
        engine="1",
        rounds=1,
        seconds=1.0,
        models=[("image", "Pictures")],
        peers=[(OURS, "Modelport", "1"), ("mosec", "mosec", "2"), ("ray", "Ray Serve", "3")],
        notes=["Ray Serve was left out."],
    )
    page = render(run, figures)
    for words in (
        "not measured",
        "0 wrong, 3 refused, 2 without",
        "7 wrong",
        "0.980 ×",
        "## Pictures",
        "Ray Serve was",
    ):
        assert words in page
    assert len(CLOSED) == 3
