"""Measures Modelport and six model servers side by side and writes docs/serving-performance.md.

python -m bench.serving [--rounds 3] [--seconds 4] [--peers modelport,fastapi,…] [--models image,tabular] [--no-llm]
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import resource
import shutil
import sys
import tempfile
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

from bench.build import CACHE, ROOT, Missing, build_tools, find_program
from bench.gateways import machine
from bench.processes import priority
from bench.report import verdict_table
from bench.serving.figures import OURS, Figures, Round, verdicts
from bench.serving.llm import measure_tokens
from bench.serving.measure import Bench, average
from bench.serving.models import Model, make_models
from bench.serving.peers import PEERS, Peer
from bench.serving.report import Run, render

_OPEN_FILES = 16_384
_PAGE = ROOT / "docs" / "serving-performance.md"


def measure_all(bench: Bench, models: Sequence[Model], peers: Sequence[Peer], *, rounds: int, llm: bool) -> Figures:
    """Every server with every model, all in turn, for all rounds. Raises: RuntimeError."""
    figures = Figures()
    for number in range(rounds):
        found = Round()
        figures.rounds.append(found)
        for model in models:
            print(f"round {number + 1}, {model.name}", file=sys.stderr, flush=True)
            before = bench.raw(model)
            for peer in peers:
                bench.serve(peer, model, found)
                if peer.name == OURS:
                    found.raw[model.name] = average(before, bench.raw(model))
            found.raw.setdefault(model.name, before)
        if llm:
            found.tokens = measure_tokens(bench)
    return figures


def _allow_connections() -> None:
    """Let this process and all it starts have as many open files as the machine lets them."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(hard, _OPEN_FILES)), hard))


def _arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.serving", description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=4.0)
    parser.add_argument("--peers", default=",".join(peer.name for peer in PEERS))
    parser.add_argument("--models", default="image,tabular")
    parser.add_argument("--no-llm", action="store_true", help="leave the language model out")
    parser.add_argument("--page", type=Path, default=_PAGE, help="where the report is written")
    parser.add_argument("--nice", type=int, default=0, help="on a busy machine, as root: -15 puts the bench first")
    parser.add_argument("--keep", action="store_true", help="keep the servers' logs and data in .cache/bench")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the bench; 0 when every target that was measured holds, 1 when one does not, 2 when it could not run."""
    options = _arguments(arguments)
    names = options.peers.split(",")
    if not set(names) <= {peer.name for peer in PEERS}:
        print(f"--peers knows {', '.join(peer.name for peer in PEERS)}", file=sys.stderr)
        return 2
    peers = [peer for peer in PEERS if peer.name in names]
    CACHE.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix="serving-run-", dir=CACHE))
    _allow_connections()
    try:
        find_program("taskset", package="util-linux")
        cores = sorted(os.sched_getaffinity(0))
        bench = Bench(build_tools().load, (cores[0], cores[-1]), folder, options.seconds)
        models = [model for model in make_models(folder) if model.name in options.models.split(",")]
        with priority(options.nice):
            peers = [peer for peer in peers if bench.has(peer)]
            figures = measure_all(bench, models, peers, rounds=options.rounds, llm=not options.no_llm)
    except (Missing, RuntimeError) as error:
        print(f"the bench could not run: {error}", file=sys.stderr)
        return 2
    finally:
        if not options.keep:
            shutil.rmtree(folder, ignore_errors=True)
    run = Run(
        command=f"python -m bench.serving --rounds {options.rounds} --seconds {options.seconds:g}",
        machine=machine(),
        engine=version("onnxruntime"),
        rounds=options.rounds,
        seconds=options.seconds,
        models=[(model.name, model.title) for model in models],
        peers=[(peer.name, peer.title, peer.version()) for peer in peers],
        notes=bench.notes,
    )
    options.page.write_text(render(run, figures))
    told = [dataclasses.asdict(one) for one in figures.rounds]
    (CACHE / "serving.json").write_text(json.dumps(told, indent=1))
    found = verdicts(figures)
    print(verdict_table(found), f"written: {options.page}", sep="\n\n")
    return 1 if any(verdict.holds is False for verdict in found) else 0


if __name__ == "__main__":
    sys.exit(main())
