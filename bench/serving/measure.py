"""Measures one server at a time: started, checked, left idle, loaded, overloaded, stopped."""

from __future__ import annotations

import http.client
import re
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from urllib.request import urlopen

import numpy as np

from bench.build import Missing
from bench.calls import WrongAnswer
from bench.peers import Place
from bench.processes import Watched, busy_s, finished_children_s
from bench.serving.asked import PROGRAMS, Asked
from bench.serving.figures import (
    CLOSED,
    OPEN,
    OURS,
    OURS_IN_TIME,
    OVERLOAD,
    SLO_MS,
    Life,
    Load,
    Measurement,
    Raw,
    Round,
)
from bench.serving.install import ensure_installed
from bench.serving.models import Model
from bench.serving.ours import let_in
from bench.serving.peers import Peer
from bench.serving.sending import Sender, write_cases

# Memory and processor settle for a moment after the start; then idle is measured.
_SETTLE_S = 1.0
_IDLE_S = 2.0
_WARM_UP_S = 0.5
_RAW_S = 60
_LAG = re.compile(r'^modelport_event_loop_lag_seconds_bucket\{le="([^"]+)"\} (\S+)$', re.M)


@dataclass(frozen=True, slots=True)
class Bench:
    """Where and how long is measured. `cores`: the load generator's and the servers'."""

    load: Path
    cores: tuple[int, int]
    folder: Path
    seconds: float
    # An open load shows a queue that grows only when it lasts.
    least_open_s: float = 4.0
    notes: list[str] = field(default_factory=list)

    def raw(self, model: Model) -> Raw:
        """onnxruntime alone on the servers' core. Raises: RuntimeError."""
        command = ["taskset", "-c", str(self.cores[1]), sys.executable, str(PROGRAMS / "raw.py"), str(self.seconds)]
        before_s, busy_before_s, began_s = finished_children_s(), busy_s(self.cores[1]), time.monotonic()
        done = subprocess.run(
            command, capture_output=True, text=True, env=model.environment(0), timeout=self.seconds + _RAW_S
        )
        if done.returncode:
            raise RuntimeError(f"onnxruntime alone failed: {done.stderr.strip()[-500:]}")
        others_s = busy_s(self.cores[1]) - busy_before_s - (finished_children_s() - before_s)
        return Raw(*map(float, done.stdout.split()), max(others_s, 0.0) / (time.monotonic() - began_s))

    def has(self, peer: Peer) -> bool:
        """Whether the server is installed, now if not before; one that can't be is a note."""
        try:
            if peer.package:
                ensure_installed(peer.package)
        except Missing as error:
            print(error, file=sys.stderr)
            self._note(f"{peer.title} was left out: its package could not be installed.")
            return False
        return True

    def serve(self, peer: Peer, model: Model, found: Round) -> None:
        """Measure one server with one model; one that can't be had becomes a note."""
        folder = self.folder / f"{peer.name}-{model.name}-{time.monotonic_ns()}"
        folder.mkdir()
        place = Place(self.cores[1], folder, 0, [])
        try:
            self._serve(peer, model, place, found)
        except (Missing, OSError, RuntimeError, WrongAnswer, subprocess.SubprocessError) as error:
            print(f"{peer.name} is left out: {error}", file=sys.stderr)
            found.loads.get(model.name, {}).pop(peer.name, None)
            self._note(f"{peer.title} was left out ({model.name}): it could not be started or did not answer rightly.")
        finally:
            for watched in reversed(place.watched):
                watched.stop()

    def _note(self, note: str) -> None:
        if note not in self.notes:
            self.notes.append(note)

    def _serve(self, peer: Peer, model: Model, place: Place, found: Round) -> None:
        began_s = time.monotonic()
        asked = peer.start(place, model)
        asked.watched.wait_ready(f"http://127.0.0.1:{asked.port}{peer.ready_path}", timeout_s=peer.ready_s)
        if peer.name in (OURS, OURS_IN_TIME):
            let_in(asked, place.folder / "data")
        _first_answer(asked, model, peer.ready_s)
        ready_s = time.monotonic() - began_s
        _check_answers(asked, model)
        time.sleep(_SETTLE_S)
        idle_bytes, idle_share = asked.watched.pss_bytes(), _idle_share(asked.watched)
        lag_ms = self._loads(peer, model, asked, found.loads.setdefault(model.name, {}))
        life = Life(ready_s, idle_share, idle_bytes, asked.watched.pss_bytes(), lag_ms)
        found.lives.setdefault(model.name, {})[peer.name] = life

    def _loads(self, peer: Peer, model: Model, asked: Asked, found: dict[str, dict[str, Measurement]]) -> float | None:
        """Every load; the event loop's lag under those with clients that wait, where the server tells it."""
        sender = _sender(self, asked, model, self.folder / f"{peer.name}-{model.name}.cases")
        sender.send(seconds=_WARM_UP_S, clients=CLOSED[-1].clients)
        loads = found[peer.name] = {}
        lag = _Lag(asked.port) if peer.name == OURS else None
        for load in CLOSED:
            loads[load.name] = self._measured(asked.watched, sender, load)
            _tell(peer, model, load, loads[load.name])
        lag_ms = lag.p99_ms() if lag else None
        # A setting that refuses calls is asked for what the server can do without it.
        plain = found.get(peer.name.partition("-")[0], loads)
        capacity = max(one.per_s for one in (*loads.values(), *(plain[load.name] for load in CLOSED)))
        if capacity:
            loads[OPEN.name] = self._measured(asked.watched, sender, OPEN, capacity * OVERLOAD)
            _tell(peer, model, OPEN, loads[OPEN.name])
        return lag_ms

    def _measured(self, watched: Watched, sender: Sender, load: Load, rate: float = 0) -> Measurement:
        seconds = max(self.seconds, self.least_open_s) if rate else self.seconds
        watched.check_alive()
        before = (watched.cpu_s(), busy_s(self.cores[1]), time.monotonic())
        loaded = sender.send(seconds=seconds, clients=load.clients, rate=rate)
        after = (watched.cpu_s(), busy_s(self.cores[1]), time.monotonic())
        cpu_s, all_s, elapsed_s = (late - early for late, early in zip(after, before, strict=True))
        return Measurement(
            per_s=loaded.right_per_s,
            p50_ms=loaded.p50_ms,
            p99_ms=loaded.p99_ms,
            in_time_per_s=loaded.in_time / seconds,
            due_per_s=loaded.due / seconds,
            answers=loaded.calls,
            refused=loaded.refused,
            wrong=loaded.wrong - loaded.refused,
            errors=loaded.errors,
            unsent=loaded.unsent,
            cpu_us_per_call=cpu_s * 1e6 / max(loaded.calls, 1),
            foreign_share=max(all_s - cpu_s, 0.0) / elapsed_s,
        )


def _sender(bench: Bench, asked: Asked, model: Model, cases: Path) -> Sender:
    write_cases(zip(map(asked.encode, model.inputs), model.expected, strict=True), cases)
    return Sender(
        program=bench.load,
        core=bench.cores[0],
        port=asked.port,
        path=asked.path,
        cases=cases,
        tolerance=model.tolerance,
        marker=asked.marker,
        content_type=asked.content_type,
        headers=asked.headers,
        slo_ms=SLO_MS,
    )


def _first_answer(asked: Asked, model: Model, timeout_s: float) -> None:
    """Return once a call is answered: a server may say that it is ready before it is. Raises: RuntimeError."""
    give_up_s = time.monotonic() + timeout_s
    while True:
        asked.watched.check_alive()
        status, body = _call(asked, model, 0)
        if status == 200:
            return
        if time.monotonic() > give_up_s or status in (400, 401, 403, 404, 405, 415, 422):
            raise RuntimeError(f"status {status}: {body[:500].decode(errors='replace')}")
        time.sleep(0.05)


def _check_answers(asked: Asked, model: Model) -> None:
    """Read every case's answer in full. Raises: WrongAnswer."""
    for number, expected in enumerate(model.expected):
        status, body = _call(asked, model, number)
        if status != 200:
            raise WrongAnswer(f"status {status}: {body[:500].decode(errors='replace')}")
        found = _numbers(asked, body, expected.size)
        if found.size != expected.size or float(np.abs(found - expected).max()) > model.tolerance:
            raise WrongAnswer(f"the numbers are {found[:4]}… instead of {expected[:4]}…")


def _call(asked: Asked, model: Model, number: int) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", asked.port, timeout=60)
    try:
        headers = {"content-type": asked.content_type, **asked.headers}
        connection.request("POST", asked.path, body=asked.encode(model.inputs[number]), headers=headers)
        answer = connection.getresponse()
        return answer.status, answer.read()
    except http.client.HTTPException as error:
        raise WrongAnswer(f"the answer is not HTTP: {error!r}") from error
    finally:
        connection.close()


def _numbers(asked: Asked, body: bytes, size: int) -> np.ndarray:  # type: ignore[type-arg]
    if not asked.marker:
        return np.frombuffer(body[-4 * size :], "<f4")
    text = body.decode().rpartition(asked.marker)[2]
    words = re.findall(r"-?\d[\d.eE+-]*", text)[:size]
    return np.array([float(word) for word in words], np.float32)


def _idle_share(watched: Watched) -> float:
    before_s, began_s = watched.ran_s(), time.monotonic()
    time.sleep(_IDLE_S)
    return max(watched.ran_s() - before_s, 0.0) / (time.monotonic() - began_s)


class _Lag:
    """The event loop's lag, out of Modelport's own histogram, from now until it is asked."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._before = self._read()

    def p99_ms(self) -> float | None:
        """The bound below which 99 of 100 wakes were; None without any."""
        after = self._read()
        counts = {bound: after[bound] - self._before.get(bound, 0.0) for bound in after}
        total = max(counts.values(), default=0.0)
        return next((bound * 1e3 for bound in sorted(counts) if total and counts[bound] >= 0.99 * total), None)

    def _read(self) -> dict[float, float]:
        with urlopen(f"http://127.0.0.1:{self._port}/metrics", timeout=30) as answer:
            return {float(bound): float(count) for bound, count in _LAG.findall(answer.read().decode())}


def _tell(peer: Peer, model: Model, load: Load, measured: Measurement) -> None:
    print(
        f"{model.name:8} {peer.name:10} {load.title:20} {measured.per_s:10,.1f}/s  p50 {measured.p50_ms:9.2f} ms"
        f"  p99 {measured.p99_ms:9.2f} ms  in time {measured.in_time_per_s:8,.1f}/s of {measured.due_per_s:8,.1f}"
        f"  refused {measured.refused}  wrong {measured.wrong}  errors {measured.errors}  unsent {measured.unsent}"
        f"  others {measured.foreign_share:4.0%}",
        file=sys.stderr,
        flush=True,
    )


def average(first: Raw, second: Raw) -> Raw:
    """The mean of two measurements, one before and one after what is compared with them; the louder of both."""
    return Raw(
        (first.lone_ms + second.lone_ms) / 2,
        (first.per_s + second.per_s) / 2,
        (first.batched_per_s + second.batched_per_s) / 2,
        max(first.foreign_share, second.foreign_share),
    )
