"""Measures Modelport, LiteLLM's proxy and nginx side by side and writes docs/performance.md.

python -m bench.gateways [--rounds 3] [--seconds 8] [--peers modelport,modelport-full,nginx,litellm]
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from bench.build import CACHE, ROOT, Missing, Tools, build_tools, find_program
from bench.calls import CHUNKS, Load, Loaded, Shape, WrongAnswer, probe
from bench.figures import DIRECT, OURS, SCENARIOS, Figures, Measurement, Scenario, verdicts
from bench.peers import PEERS, Place, Running, metered_calls
from bench.processes import Watched, busy_s, finished_children_s, priority
from bench.report import Memory, Run, ratio_table, render, verdict_table

_PAGE = ROOT / "docs" / "performance.md"
_WARM_UP_S = 2.0
# From the second round on the code is warm; this only wakes the connections.
_WAKE_UP_S = 0.5
# Memory and CPU settle for this long after the start before they count as idle.
_SETTLE_S = 3.0
_METERED_S = 15.0


@dataclasses.dataclass(slots=True)
class Target:
    """One thing under load: a gateway, or the upstream itself."""

    running: Running
    shapes: dict[bool, Shape]
    idle_bytes: int
    sent: int


class Bench:
    """All targets up at once, measured in turn. Enter it to start them, leave it to stop them."""

    def __init__(self, tools: Tools, cores: tuple[int, int], folder: Path) -> None:
        self.tools = tools
        self.core = cores[1]
        self.folder = folder
        self.targets: dict[str, Target] = {}
        self.notes: list[str] = []
        self._load = Load(tools.load, cores[0], folder)
        self._watched: list[Watched] = []

    def start_upstream(self, core: int) -> int:
        """The upstream's port. Raises: RuntimeError, WrongAnswer."""
        watched = Watched(
            [str(self.tools.upstream), "--chunks", str(CHUNKS)],
            core=core,
            log=self.folder / "upstream.log",
            environment={},
        )
        self._watched.append(watched)
        port = int(watched.first_line(timeout_s=10))
        self._add(Running(DIRECT, "", port, watched))
        return port

    def start_peer(self, name: str, upstream_port: int) -> None:
        """Start one gateway and check its answers; one that can't be had becomes a note of the report."""
        folder = self.folder / name
        folder.mkdir()
        try:
            running = PEERS[name](Place(self.core, folder, upstream_port, self._watched))
        except (Missing, OSError, RuntimeError) as error:
            self._leave_out(name, error)
            return
        try:
            self._add(running)
        except (WrongAnswer, OSError) as error:
            self._leave_out(name, error)

    def _add(self, running: Running) -> None:
        shapes = {stream: probe(running.port, running.headers, stream=stream) for stream in (False, True)}
        time.sleep(0 if running.name == DIRECT else _SETTLE_S)
        self.targets[running.name] = Target(running, shapes, running.watched.pss_bytes(), sent=len(shapes))
        self.notes.extend(running.notes)

    def _leave_out(self, name: str, error: Exception) -> None:
        print(f"{name} is left out: {error}", file=sys.stderr)
        self.notes.append(f"{name} was left out: it could not be started or did not answer rightly.")

    def measure(self, scenario: Scenario, name: str, *, seconds: float, warm_up_s: float) -> Measurement:
        """Warm up, then one measurement. Raises: RuntimeError when the gateway or the upstream has died."""
        target = self.targets[name]
        for watched in {self.targets[DIRECT].running.watched, target.running.watched}:
            watched.check_alive()
        self._send(target, scenario, warm_up_s)
        before_s = self._clocks_s(target)
        loaded = self._send(target, scenario, seconds * scenario.share)
        cpu_s, ours_s, busy, elapsed_s = (
            after - before for after, before in zip(self._clocks_s(target), before_s, strict=True)
        )
        if loaded.not_ok:
            print(f"{name}: {loaded.not_ok} answers with status {loaded.first_bad_status} …", file=sys.stderr)
        return Measurement(
            calls=loaded.calls,
            wrong=loaded.wrong,
            errors=loaded.errors,
            calls_per_s=loaded.calls_per_s,
            p50_ms=loaded.p50_ms,
            p99_ms=loaded.p99_ms,
            first_p50_ms=loaded.first_p50_ms,
            cpu_us_per_call=cpu_s * 1e6 / max(loaded.calls, 1),
            core_share=cpu_s / elapsed_s,
            foreign_share=max(busy - ours_s, 0.0) / elapsed_s,
        )

    def _clocks_s(self, target: Target) -> tuple[float, float, float, float]:
        """Processor time so far of the target, of all that belongs on its core, and of that core; and the time."""
        cpu_s = target.running.watched.cpu_s()
        direct = target.running.name == DIRECT
        ours_s = cpu_s + finished_children_s() if direct else cpu_s
        return cpu_s, ours_s, busy_s(self._load.core if direct else self.core), time.monotonic()

    def _send(self, target: Target, scenario: Scenario, seconds: float) -> Loaded:
        running = target.running
        loaded = self._load.run(
            running.port,
            running.headers,
            target.shapes[scenario.stream],
            connections=scenario.connections,
            seconds=seconds,
            stream=scenario.stream,
        )
        target.sent += loaded.calls
        return loaded

    def memory(self) -> dict[str, Memory]:
        return {
            name: Memory(target.idle_bytes, target.running.watched.pss_bytes())
            for name, target in self.targets.items()
            if name != DIRECT
        }

    def check_metering(self) -> None:
        """Note whether Modelport's usage report counts exactly the calls that were sent."""
        target = self.targets.get(OURS)
        if target is None:
            return
        found, give_up_s = -1, time.monotonic() + _METERED_S
        while found != target.sent and time.monotonic() < give_up_s:
            with contextlib.suppress(OSError, KeyError, ValueError):
                found = metered_calls(target.running)
            time.sleep(0.2)
        known = f"{found:,}" if found >= 0 else "an unknown number"
        self.notes.append(f"Modelport's usage report counts {known} calls; {target.sent:,} were answered.")

    def stop(self) -> None:
        for watched in reversed(self._watched):
            watched.stop()


@contextlib.contextmanager
def started(peers: Sequence[str], *, keep: bool = False) -> Iterator[Bench]:
    """The upstream and the peers, up and checked, on two cores of their own.

    Raises: Missing, WrongAnswer, RuntimeError.
    """
    find_program("taskset", package="util-linux")
    cores = sorted(os.sched_getaffinity(0))
    CACHE.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix="run-", dir=CACHE))
    bench = Bench(build_tools(), (cores[0], cores[-1]), folder)
    if len(cores) < 2:
        bench.notes.append("This machine has one core: load and gateways shared it, so the figures say little.")
    try:
        port = bench.start_upstream(cores[0])
        for name in peers:
            print(f"starting {name} …", file=sys.stderr)
            bench.start_peer(name, port)
        yield bench
    finally:
        bench.stop()
        if not keep:
            shutil.rmtree(folder, ignore_errors=True)


def measure_all(bench: Bench, *, rounds: int, seconds: float, warm_up_s: float = _WARM_UP_S) -> Figures:
    """Every scenario against every target, all targets in turn, for all rounds."""
    figures = Figures()
    for number in range(rounds):
        for scenario in SCENARIOS:
            for name in bench.targets:
                if name in scenario.without:
                    continue
                before_s = min(warm_up_s, _WAKE_UP_S) if number else warm_up_s
                measured = bench.measure(scenario, name, seconds=seconds, warm_up_s=before_s)
                figures.add(scenario, name, measured)
                print(_progress(number, scenario, name, measured), file=sys.stderr, flush=True)
    return figures


def _progress(number: int, scenario: Scenario, name: str, measured: Measurement) -> str:
    return (
        f"round {number + 1}  {scenario.title:22} {name:10} {measured.calls_per_s:10,.0f}/s"
        f" {measured.cpu_us_per_call:9,.1f} µs  p50 {measured.p50_ms:8.3f} ms  first {measured.first_p50_ms:8.3f} ms"
        f"  core {measured.core_share:4.0%}  others {measured.foreign_share:4.0%}"
        f"  wrong {measured.wrong}  errors {measured.errors}"
    )


def machine() -> str:
    model = next(
        (
            line.partition(":")[2].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if "model name" in line
        ),
        os.uname().machine,
    )
    return f"{len(os.sched_getaffinity(0))} cores of {model}, Linux {os.uname().release.partition('-')[0]}"


def _arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.gateways", description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=8.0)
    parser.add_argument("--peers", default="modelport,modelport-full,nginx,litellm")
    parser.add_argument("--page", type=Path, default=_PAGE, help="where the report is written")
    parser.add_argument("--nice", type=int, default=0, help="on a busy machine, as root: -15 puts the bench first")
    parser.add_argument("--keep", action="store_true", help="keep the logs and data of the gateways in .cache/bench")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the bench; 0 when every target that was measured holds, 1 when one does not, 2 when it could not run."""
    options = _arguments(arguments)
    names = options.peers.split(",")
    if not set(names) <= set(PEERS):
        print(f"--peers knows {', '.join(PEERS)}", file=sys.stderr)
        return 2
    try:
        with priority(options.nice), started(names, keep=options.keep) as bench:
            figures = measure_all(bench, rounds=options.rounds, seconds=options.seconds)
            bench.check_metering()
            versions = {name: target.running.version for name, target in bench.targets.items()}
            run = Run(
                command=f"python -m bench.gateways --rounds {options.rounds} --seconds {options.seconds:g}",
                machine=machine(),
                rounds=options.rounds,
                seconds=options.seconds,
                versions=versions,
                memory=bench.memory(),
                notes=bench.notes,
            )
    except (Missing, WrongAnswer, RuntimeError) as error:
        print(f"the bench could not run: {error}", file=sys.stderr)
        return 2
    options.page.write_text(render(run, figures))
    (CACHE / "gateways.json").write_text(json.dumps(dataclasses.asdict(figures)["rounds"], indent=1))
    found = verdicts(figures, chunks=CHUNKS)
    print(verdict_table(found), ratio_table(figures, list(versions)), f"written: {options.page}", sep="\n\n")
    return 1 if any(verdict.holds is False for verdict in found) else 0


if __name__ == "__main__":
    sys.exit(main())
