"""What Prometheus is told: every metric of the platform, and how `/metrics` is written.

The supervisor sets PROMETHEUS_MULTIPROC_DIR for its workers: prometheus-client decides on import whether its values
live in files that processes share. Labels take only values the platform itself defines
(endpoints, configured models, statuses, error codes), and `MAX_CHILDREN` bounds them whatever happens.
"""

from __future__ import annotations

import asyncio
import functools
import os
import resource
import time
from bisect import bisect_left
from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest, values
from prometheus_client import multiprocess as shared
from prometheus_client.metrics import MetricWrapperBase

from modelport.calls import Served, Usage
from modelport.kit.latency import BOUNDS_S
from modelport.observe.batches import BatchMetrics
from modelport.observe.counts import CACHE, CALL, CountKey

CONTENT_TYPE = b"text/plain; version=0.0.4; charset=utf-8"
# Label sets in all; a platform with 1,000 models on a few endpoints stays below. Later ones count as "other".
MAX_CHILDREN = 10_000
PROCESS_INTERVAL_S = 5.0
# Calls are added up in plain numbers and handed to Prometheus this often: its own locks and shared files would take
# several times as long for each call. A scrape sees this worker's calls at once and its neighbours' so much later.
CALLS_INTERVAL_S = 0.5
_OTHER = "other"
_MICROS = 1e-6
_LATENCY_S = BOUNDS_S
_FIRST_TOKEN_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.2, 0.35, 0.5, 1, 2, 3, 5, 10, 30, 60, 120)
_LAG_S = (0.0005, 0.001, 0.002, 0.003, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 5)

if os.environ.get("PROMETHEUS_MULTIPROC_DIR"):
    # The library asks for the process id at every change of a value, in case of a fork; workers never fork.
    _pid = os.getpid()
    values.ValueClass = values.MultiProcessValue(process_identifier=lambda: _pid)  # type: ignore[no-untyped-call]

_Metric = TypeVar("_Metric", bound=MetricWrapperBase)


class _Tally:
    """How often each bucket of a histogram was hit, and the sum of what was observed."""

    __slots__ = ("_bounds_us", "hits", "sum_us")

    def __init__(self, bounds_s: Sequence[float]) -> None:
        self._bounds_us = [bound * 1e6 for bound in bounds_s]
        self.hits = [0] * (len(bounds_s) + 1)
        self.sum_us = 0

    def add(self, us: int) -> None:
        self.hits[bisect_left(self._bounds_us, us)] += 1
        self.sum_us += us

    def hand_over(self, histogram: Histogram) -> None:
        """Add all of it to the child `histogram`, and begin anew."""
        # The library has no way to observe many values at once, so its values are added to directly.
        for value, hits in zip(histogram._buckets, self.hits, strict=True):
            if hits:
                value.inc(hits)
        histogram._sum.inc(self.sum_us * _MICROS)
        self.hits = [0] * len(self.hits)
        self.sum_us = 0


class _Calls:
    """The calls of one endpoint, model and version since they were last handed to Prometheus."""

    __slots__ = ("cached_tokens", "first_token", "input_tokens", "output_tokens", "statuses")

    def __init__(self) -> None:
        self.statuses: dict[int, _Tally] = {}
        self.first_token = _Tally(_FIRST_TOKEN_S)
        self.input_tokens = self.output_tokens = self.cached_tokens = 0


class Metrics:
    """Every metric of one process.

    Concurrency: `call_ended`, `attempted`, `cached`, `take_counts`, `loop_lag` and `render` on the event loop, the rest
    in any thread.
    """

    def __init__(self) -> None:
        self._registry = registry = CollectorRegistry()
        self._children: dict[tuple[str, ...], MetricWrapperBase] = {}
        self._describe_calls(registry)
        self._describe_replay(registry)
        self.batches = BatchMetrics(registry)
        self._describe_routing(registry)
        self._describe_process(registry)

    def _describe_calls(self, registry: CollectorRegistry) -> None:
        self._calls = Counter(
            "modelport_calls", "Inference calls that ended.", ["endpoint", "model", "status"], registry=registry
        )
        self._latency = Histogram(
            "modelport_call_duration_seconds",
            "From a call's arrival to the end of its answer.",
            ["endpoint", "model"],
            buckets=_LATENCY_S,
            registry=registry,
        )
        self._first_token = Histogram(
            "modelport_first_token_seconds",
            "From a call's arrival to the first piece of model output.",
            ["endpoint", "model"],
            buckets=_FIRST_TOKEN_S,
            registry=registry,
        )
        self._tokens = Counter(
            "modelport_tokens", "Tokens by kind: input (cached ones among them), cached, output.", ["model", "kind"],
            registry=registry,
        )  # fmt: skip
        self._requests = Counter(
            "modelport_http_requests", "HTTP requests that were answered.", ["route", "status"], registry=registry
        )
        self._request_latency = Histogram(
            "modelport_http_request_duration_seconds",
            "From a request's arrival to the end of its answer.",
            ["route"],
            buckets=_LATENCY_S,
            registry=registry,
        )
        self._refusals = Counter("modelport_refusals", "Calls refused before they began.", ["code"], registry=registry)
        self._budget_actions = Counter(
            "modelport_budget_actions",
            "Calls that budgets waited for, refused, shortened, or stopped at their ceiling.",
            ["action"],
            registry=registry,
        )
        self._versions = Counter(
            "modelport_version_calls", "Inference calls that ended, by what served them.", ["model", "version"],
            registry=registry,
        )  # fmt: skip
        self._tallies: dict[tuple[str, str, str], _Calls] = {}
        # None where nobody takes them.
        self._kept: dict[CountKey, int] | None = None
        # A plain number that the gauge is set from: it changes twice a call and is read every few seconds.
        self.calls_in_flight = 0
        self._in_flight = Gauge(
            "modelport_calls_in_flight", "Calls being answered now.", registry=registry, multiprocess_mode="livesum"
        )

    def _describe_replay(self, registry: CollectorRegistry) -> None:
        self._cached = Counter(
            "modelport_cache_calls",
            "Calls to models with a cache: hit, follower (of a call on its way), miss, bypass.",
            ["model", "origin"],
            registry=registry,
        )
        self._cached_counts: dict[tuple[str, str], int] = {}
        self._held_bytes = 0
        self._cache_bytes = Gauge(
            "modelport_cache_bytes",
            "What stored answers take up in memory.",
            registry=registry,
            multiprocess_mode="livesum",
        )
        self.idempotent_replays = Counter(
            "modelport_idempotent_replays", "Requests answered from what was kept under their Idempotency-Key.",
            registry=registry,
        )  # fmt: skip

    def _describe_routing(self, registry: CollectorRegistry) -> None:
        self._attempts = Counter(
            "modelport_attempts", "Attempts by how they ended: ok, cancelled, broken, or why they failed.",
            ["upstream", "outcome"], registry=registry,
        )  # fmt: skip
        self._attempt_counts: dict[tuple[str, str], int] = {}
        self._retries = Counter(
            "modelport_retries", "Attempts that followed a failed one, by why that failed.", ["cause"],
            registry=registry,
        )  # fmt: skip
        self._fallbacks = Counter(
            "modelport_fallbacks",
            "Calls for which another model was asked, by why.",
            ["model", "cause"],
            registry=registry,
        )
        self._hedges = Counter(
            "modelport_hedges", "Second attempts for speed, by which of the two answered.", ["upstream", "winner"],
            registry=registry,
        )  # fmt: skip
        self._circuit = Gauge(
            "modelport_circuit_state",
            "0: closed, 1: half-open, 2: open; the worst of all workers.",
            ["upstream", "model"],
            registry=registry,
            multiprocess_mode="livemax",
        )

    def _describe_process(self, registry: CollectorRegistry) -> None:
        self.journal_pending = Gauge(
            "modelport_journal_pending_events",
            "Usage events that the database does not have yet.",
            registry=registry,
            multiprocess_mode="livesum",
        )
        self.journal_bytes = Gauge(
            "modelport_journal_bytes", "Size of the journal.", registry=registry, multiprocess_mode="livesum"
        )
        self.journal_failures = Counter(
            "modelport_journal_commit_failures", "Commits of usage events that failed and are retried.",
            registry=registry,
        )  # fmt: skip
        self.events_set_aside = Counter(
            "modelport_usage_events_set_aside", "Usage events that the database refused; they are in the log.",
            registry=registry,
        )  # fmt: skip
        self._cpu = Gauge(
            "modelport_process_cpu_seconds", "Processor time used.", registry=registry, multiprocess_mode="liveall"
        )
        self._memory = Gauge(
            "modelport_process_resident_bytes", "Memory in use.", registry=registry, multiprocess_mode="liveall"
        )
        self._started = Gauge(
            "modelport_process_start_time_seconds", "When the process began, Unix time.", registry=registry,
            multiprocess_mode="liveall",
        )  # fmt: skip
        self._started.set(time.time())
        self._describe_lag(registry)

    def _describe_lag(self, registry: CollectorRegistry) -> None:
        self._lag = Histogram(
            "modelport_event_loop_lag_seconds",
            "How late the event loop woke who was due; a millisecond of it may be its clock's.",
            buckets=_LAG_S,
            registry=registry,
        )
        self._lags = _Tally(_LAG_S)
        self._burn_rate = Gauge(
            "modelport_slo_burn_rate",
            "How many times too fast a promise is spent; 1 spends it by the window's end.",
            ["model", "endpoint", "objective", "window"],
            registry=registry,
            multiprocess_mode="livemax",
        )

    def call_ended(
        self, endpoint: str, served: Served, status: int, *, latency_us: int, first_token_us: int | None, usage: Usage
    ) -> None:
        """Count one call. `served` is a configured model and its version."""
        key = (endpoint, served.model, served.version)
        calls = self._tallies.get(key)
        if calls is None:
            calls = self._tallies[key] = _Calls()
        latency = calls.statuses.get(status)
        if latency is None:
            latency = calls.statuses[status] = _Tally(_LATENCY_S)
        latency.add(latency_us)
        if first_token_us is not None:
            calls.first_token.add(first_token_us)
        calls.input_tokens += usage.input_tokens
        calls.output_tokens += usage.output_tokens
        calls.cached_tokens += usage.cached_tokens

    def hand_over(self) -> None:
        """Tell Prometheus of the calls and attempts since the last time."""
        for (upstream, outcome), count in self._attempt_counts.items():
            self._child(self._attempts, upstream or "local", outcome).inc(count)
        self._attempt_counts.clear()
        self.batches.hand_over()
        if self._cached_counts:
            for (model, origin), count in self._cached_counts.items():
                self._child(self._cached, model, origin).inc(count)
                if self._kept is not None:
                    _keep(self._kept, (CACHE, "", model, "", origin), (count,))
            self._cached_counts.clear()
            self._cache_bytes.set(self._held_bytes)
        if self._lags.sum_us:
            self._lags.hand_over(self._lag)
        for (endpoint, model, version), calls in self._tallies.items():
            if not calls.statuses:
                continue
            for status, latency in calls.statuses.items():
                if self._kept is not None:
                    _keep(self._kept, (CALL, endpoint, model, version, str(status)), latency.hits)
                count = sum(latency.hits)
                self._child(self._calls, endpoint, model, str(status)).inc(count)
                self._child(self._versions, model, version).inc(count)
                latency.hand_over(self._child(self._latency, endpoint, model))
            calls.statuses.clear()
            if calls.first_token.sum_us:
                calls.first_token.hand_over(self._child(self._first_token, endpoint, model))
            for kind in ("input", "cached", "output"):
                tokens = getattr(calls, f"{kind}_tokens")
                if tokens:
                    self._child(self._tokens, model, kind).inc(tokens)
                    setattr(calls, f"{kind}_tokens", 0)

    def keep_counts(self) -> None:
        """From now on, keep what is counted for `take_counts` too."""
        self._kept = {}

    def take_counts(self) -> dict[CountKey, int]:
        """The calls that were counted since the last time."""
        self.hand_over()
        taken, self._kept = self._kept or {}, {}
        return taken

    def loop_lag(self, us: int) -> None:
        """Count how late the event loop was, once."""
        self._lags.add(us)

    def burn_rate(self, place: tuple[str, str, str, str], rate: float) -> None:
        """Show how fast a promise is spent: of a model, endpoint, objective and window."""
        self._child(self._burn_rate, *place).set(rate)

    def request(self, route: str, status: int, seconds: float) -> None:
        """Count one HTTP request; `route` is a route's template, never a path."""
        self._child(self._requests, route, str(status)).inc()
        self._child(self._request_latency, route).observe(seconds)

    def refused(self, code: str) -> None:
        """Count a call that was turned away; `code` is an error's."""
        self._child(self._refusals, code).inc()

    def attempted(self, upstream: str, outcome: str) -> None:
        """Count one attempt at a target of `upstream` (empty: a local model)."""
        key = (upstream, outcome)
        self._attempt_counts[key] = self._attempt_counts.get(key, 0) + 1

    def retried(self, cause: str) -> None:
        """Count an attempt that follows one that failed because of `cause`."""
        self._child(self._retries, cause).inc()

    def fell_back(self, model: str, cause: str) -> None:
        """Count a call to `model` for which another one is asked."""
        self._child(self._fallbacks, model, cause).inc()

    def hedged(self, upstream: str, winner: str) -> None:
        """Count a second attempt beside a slow one at `upstream`; `winner` is `first`, `second` or `none`."""
        self._child(self._hedges, upstream or "local", winner).inc()

    def circuit_state(self, upstream: str, model: str, state: int) -> None:
        """Show the state of one target's breaker."""
        self._child(self._circuit, upstream, model).set(state)

    def budget_action(self, action: str) -> None:
        """Count what a budget did to a call: `waited`, `refused`, `shortened` or `stopped`."""
        self._child(self._budget_actions, action).inc()

    def cached(self, model: str, origin: str, *, held_bytes: int) -> None:
        """Count one call to a model with a cache, by where its answer comes from."""
        key = (model, origin)
        self._cached_counts[key] = self._cached_counts.get(key, 0) + 1
        self._held_bytes = held_bytes

    def observe_process(self) -> None:
        """Note this process's processor time and memory; called every few seconds in each process."""
        self._in_flight.set(self.calls_in_flight)
        usage = resource.getrusage(resource.RUSAGE_SELF)
        self._cpu.set(usage.ru_utime + usage.ru_stime)
        self._memory.set(_resident_bytes())

    async def observe_forever(self) -> None:
        """Keep this process's own gauges fresh, for the worker that happens to be asked for all. Until cancelled."""
        process_due_s = 0.0
        while True:
            if time.monotonic() >= process_due_s:
                self.observe_process()
                process_due_s = time.monotonic() + PROCESS_INTERVAL_S
            self.hand_over()
            await asyncio.sleep(CALLS_INTERVAL_S)

    def render(self) -> bytes:
        """The text of `/metrics`: this process's values, or all workers' where they share a directory."""
        self.hand_over()
        self.observe_process()
        if not os.environ.get("PROMETHEUS_MULTIPROC_DIR"):
            return generate_latest(self._registry)
        registry = CollectorRegistry()
        shared.MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
        return generate_latest(registry)

    def _child(self, metric: _Metric, *labels: str) -> _Metric:
        """The child for these labels, looked up once: `labels()` costs as much as the observation itself."""
        key = (metric._name, *labels)
        child = self._children.get(key)
        if child is None:
            if len(self._children) >= MAX_CHILDREN:
                return metric.labels(*(_OTHER for _ in labels))
            child = self._children[key] = metric.labels(*labels)
        return child  # type: ignore[return-value]


def _keep(kept: dict[CountKey, int], labels: tuple[str, str, str, str, str], hits: Sequence[int]) -> None:
    """Add the calls of each stretch."""
    for stretch, calls in enumerate(hits):
        if calls:
            key = CountKey(*labels, stretch)
            kept[key] = kept.get(key, 0) + calls


@functools.cache
def process_metrics() -> Metrics:
    """This process's metrics, made when first asked for."""
    return Metrics()


def _resident_bytes() -> int:
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except OSError:
        # No /proc: the highest use so far, in kilobytes.
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return pages * resource.getpagesize()
