"""The bench measures what it says: it counts right answers, and never takes wrong or missing bytes for one."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from bench.build import Tools, build_tools
from bench.calls import CHUNKS, Load, Loaded, Shape, WrongAnswer, probe
from bench.figures import (
    DIRECT,
    OURS,
    SCENARIOS,
    STREAM_16,
    STREAM_64,
    STREAM_128,
    WHOLE_64,
    Figures,
    Measurement,
    verdicts,
)
from bench.gateways import measure_all, started
from bench.processes import Watched
from bench.report import Run, render

_SECONDS = 0.3
# Twenty chunks, the usage chunk and [DONE].
_EVENTS = CHUNKS + 2


@pytest.fixture(scope="module")
def tools() -> Tools:
    return build_tools()


@contextlib.contextmanager
def _upstream(tools: Tools, folder: Path, *options: str) -> Iterator[int]:
    command = [str(tools.upstream), "--port", "0", *options]
    watched = Watched(command, core=0, log=folder / "upstream.log", environment={})
    try:
        yield int(watched.first_line(timeout_s=10))
    finally:
        watched.stop()


@contextlib.asynccontextmanager
async def _plain_proxy(upstream_port: int) -> AsyncIterator[int]:
    """A proxy that only passes bytes on, both ways."""

    async def pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
        writer.close()
        await writer.wait_closed()

    serving: set[asyncio.Task[None]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        serving.add(task)
        up_reader, up_writer = await asyncio.open_connection("127.0.0.1", upstream_port)
        await asyncio.gather(pass_on(reader, up_writer), pass_on(up_reader, writer))

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        yield server.sockets[0].getsockname()[1]
    # Its clients have hung up, so each connection is about to end by itself.
    await asyncio.gather(*serving)


def _load(tools: Tools, folder: Path, port: int, *, stream: bool, shape: Shape, connections: int = 4) -> Loaded:
    load = Load(tools.load, 0, folder)
    return load.run(port, {}, shape, connections=connections, seconds=_SECONDS, stream=stream)


@pytest.mark.parametrize("stream", [False, True])
def test_the_upstream_itself_answers_rightly(tools: Tools, tmp_path: Path, stream: bool) -> None:
    with _upstream(tools, tmp_path) as port:
        shape = probe(port, {}, stream=stream)
        loaded = _load(tools, tmp_path, port, stream=stream, shape=shape)
    assert shape.events == (_EVENTS if stream else 0)
    assert loaded.calls > 0
    assert (loaded.wrong, loaded.errors, loaded.not_ok) == (0, 0, 0)
    assert loaded.bytes == loaded.calls * shape.size_bytes
    assert 0 < loaded.p50_ms <= loaded.p90_ms <= loaded.p99_ms
    assert loaded.first_p50_ms < loaded.p50_ms


@pytest.mark.parametrize("stream", [False, True])
async def test_a_plain_proxy_changes_no_byte(tools: Tools, tmp_path: Path, stream: bool) -> None:
    with _upstream(tools, tmp_path) as upstream_port:
        shape = await asyncio.to_thread(probe, upstream_port, {}, stream=stream)
        async with _plain_proxy(upstream_port) as port:
            loaded = await asyncio.to_thread(_load, tools, tmp_path, port, stream=stream, shape=shape)
    assert loaded.calls > 0
    assert (loaded.wrong, loaded.errors) == (0, 0)


@pytest.mark.parametrize("stream", [False, True])
def test_each_wrong_word_is_counted(tools: Tools, tmp_path: Path, stream: bool) -> None:
    with _upstream(tools, tmp_path, "--corrupt", "3") as port:
        shape = probe(port, {}, stream=stream)
        loaded = _load(tools, tmp_path, port, stream=stream, shape=shape, connections=1)
    # The probe was the first answer.
    assert loaded.wrong == (loaded.calls + 1) // 3 > 0
    assert loaded.errors == 0


@pytest.mark.parametrize("stream", [False, True])
def test_each_answer_that_is_cut_off_is_an_error(tools: Tools, tmp_path: Path, stream: bool) -> None:
    with _upstream(tools, tmp_path, "--break", "3") as port:
        shape = probe(port, {}, stream=stream)
        loaded = _load(tools, tmp_path, port, stream=stream, shape=shape, connections=1)
    assert loaded.errors == (loaded.calls + loaded.errors + 1) // 3 > 0
    assert loaded.wrong == 0


def test_an_answer_of_another_size_or_number_of_events_is_wrong(tools: Tools, tmp_path: Path) -> None:
    with _upstream(tools, tmp_path) as port:
        shape = probe(port, {}, stream=True)
        larger = _load(tools, tmp_path, port, stream=True, shape=Shape(shape.size_bytes + 1, shape.events))
        more = _load(tools, tmp_path, port, stream=True, shape=Shape(shape.size_bytes, shape.events + 1))
    assert larger.wrong == larger.calls > 0
    assert more.wrong == more.calls > 0


def test_a_gateway_that_changes_the_text_is_not_measured(tools: Tools, tmp_path: Path) -> None:
    with _upstream(tools, tmp_path, "--corrupt", "1") as port:
        for stream in (False, True):
            with pytest.raises(WrongAnswer):
                probe(port, {}, stream=stream)


def test_a_round_without_gateways_gives_the_ceiling_and_a_page() -> None:
    with started([]) as bench:
        figures = measure_all(bench, rounds=1, seconds=0.2, warm_up_s=0.05)
    for scenario in SCENARIOS:
        (measured,) = figures.of(scenario, DIRECT)
        assert measured.calls > 0
        assert (measured.wrong, measured.errors) == (0, 0)
        assert measured.cpu_us_per_call >= 0
    run = Run(
        command="c", machine="m", rounds=1, seconds=0.2, versions={DIRECT: ""}, memory={}, notes=["Nothing else."]
    )
    page = render(run, figures)
    assert "not measured" in page
    assert "0 wrong, 0 errors" in page


def test_a_target_holds_only_when_its_ratio_says_so() -> None:
    figures = Figures()
    for target, calls_per_s in ((OURS, 9.0), ("nginx", 100.0), ("litellm", 0.1)):
        figures.add(WHOLE_64, target, _measured(calls_per_s))
    of_nginx, of_litellm, *others = verdicts(figures, chunks=CHUNKS)
    assert (of_nginx.found, of_nginx.holds) == (0.09, False)
    assert of_litellm.holds is True
    assert {verdict.holds for verdict in others} == {None}


def test_the_cost_of_a_chunk_is_judged_by_what_the_machine_takes_for_the_same_of_nginx() -> None:
    figures = Figures()
    ours, nginx = _measured(100.0), _measured(100.0)
    for scenario in (STREAM_16, STREAM_64, STREAM_128):
        figures.add(scenario, OURS, dataclasses.replace(ours, cpu_us_per_call=60.0 * CHUNKS))
        figures.add(scenario, "nginx", dataclasses.replace(nginx, cpu_us_per_call=416.0))
    *_, chunk = verdicts(figures, chunks=CHUNKS)
    assert (chunk.found, chunk.holds) == (30.0, True)


def test_wrong_answers_prove_no_target() -> None:
    figures = Figures()
    figures.add(WHOLE_64, OURS, _measured(100.0, wrong=1))
    figures.add(WHOLE_64, "nginx", _measured(100.0))
    of_nginx, *_ = verdicts(figures, chunks=CHUNKS)
    assert (of_nginx.found, of_nginx.holds) == (None, None)


def test_a_busy_machine_proves_no_ratio_of_speeds() -> None:
    figures = Figures()
    figures.add(WHOLE_64, OURS, _measured(50.0))
    figures.add(WHOLE_64, "nginx", _measured(100.0, foreign_share=0.5))
    of_nginx, *_ = verdicts(figures, chunks=CHUNKS)
    assert (of_nginx.found, of_nginx.holds) == (0.5, None)


def test_a_bench_whose_upstream_died_stops() -> None:
    with started([]) as bench:
        bench.targets[DIRECT].running.watched.stop()
        with pytest.raises(RuntimeError, match="ended with"):
            bench.measure(WHOLE_64, DIRECT, seconds=_SECONDS, warm_up_s=0)


def _measured(calls_per_s: float, *, wrong: int = 0, foreign_share: float = 0.0) -> Measurement:
    return Measurement(
        calls=1,
        wrong=wrong,
        errors=0,
        calls_per_s=calls_per_s,
        p50_ms=1.0,
        p99_ms=1.0,
        first_p50_ms=0.0,
        cpu_us_per_call=1.0,
        core_share=1.0,
        foreign_share=foreign_share,
    )
