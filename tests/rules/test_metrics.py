"""Metrics count each call once, add up over processes, and can't grow without bound."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from modelport.backends.batching.figures import Figures
from modelport.calls import Served, Usage
from modelport.observe import metrics as metrics_module
from modelport.observe.counts import CountKey
from modelport.observe.lag import LoopLag
from modelport.observe.metrics import Metrics
from tests.waiting import wait_until

SERVED = Served("m", "2", "onnx", "m")
WORKER = """
from modelport.backends.batching.figures import Figures
from modelport.calls import Served, Usage
from modelport.observe.metrics import process_metrics
SERVED = Served("m", "2", "onnx", "m")
metrics = process_metrics()
metrics.call_ended("/v1/chat/completions", SERVED, 200, latency_us=1_500, first_token_us=400, usage=Usage(10, 2, 4))
metrics.calls_in_flight += 1
print(metrics.render().decode())
"""


def value(text: str, name: str, **labels: str) -> float:
    found = [
        sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name == name and labels.items() <= sample.labels.items()
    ]
    return sum(found)


def test_a_call_is_counted_with_its_times_and_tokens() -> None:
    metrics = Metrics()
    for status in (200, 200, 502):
        usage = Usage(100, 20, cached_tokens=40)
        metrics.call_ended(
            "/v1/chat/completions", SERVED, status, latency_us=150_000, first_token_us=40_000, usage=usage
        )
    metrics.refused("rate_limit_exceeded")
    text = metrics.render().decode()
    assert value(text, "modelport_calls_total", model="m", status="200") == 2
    assert value(text, "modelport_calls_total", status="502") == 1
    assert value(text, "modelport_call_duration_seconds_bucket", le="0.2") == 3
    assert value(text, "modelport_call_duration_seconds_bucket", le="0.1") == 0
    assert value(text, "modelport_first_token_seconds_count") == 3
    assert [value(text, "modelport_tokens_total", kind=kind) for kind in ("input", "output", "cached")] == [
        300,
        60,
        120,
    ]
    assert value(text, "modelport_refusals_total", code="rate_limit_exceeded") == 1
    assert value(text, "modelport_process_resident_bytes") > 1_000_000


async def test_what_holds_the_event_loop_is_seen_and_what_does_not_is_not() -> None:
    metrics = Metrics()
    lag = LoopLag(metrics.loop_lag)
    lag.start()
    lags = metrics._lags
    await wait_until(lambda: sum(lags.hits) >= 3, "the loop was asked three times")
    busy_until = time.monotonic() + 0.6
    while time.monotonic() < busy_until:
        pass
    await wait_until(lambda: sum(lags.hits) >= 5, "it was asked again")
    lag.stop()
    text = metrics.render().decode()
    late = "modelport_event_loop_lag_seconds_bucket"
    assert value(text, late, le="+Inf") - value(text, late, le="0.2") == 1


def test_versions_are_told_apart_and_counts_are_kept_for_whoever_takes_them() -> None:
    metrics = Metrics()
    metrics.call_ended("/v1/predict", SERVED, 200, latency_us=900, first_token_us=None, usage=Usage())
    metrics.hand_over()
    metrics.keep_counts()
    for served, latency_us in ((SERVED, 900), (SERVED._replace(version="3"), 1_500)):
        metrics.call_ended("/v1/predict", served, 200, latency_us=latency_us, first_token_us=None, usage=Usage())
    assert metrics.take_counts() == {
        CountKey("call", "/v1/predict", "m", "2", "200", 0): 1,
        CountKey("call", "/v1/predict", "m", "3", "200", 1): 1,
    }
    assert metrics.take_counts() == {}
    text = metrics.render().decode()
    assert [value(text, "modelport_version_calls_total", version=version) for version in ("2", "3")] == [2, 1]
    assert value(text, "modelport_calls_total") == 3


def test_labels_are_bounded_whatever_comes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics_module, "MAX_CHILDREN", 5)
    metrics = Metrics()
    for number in range(50):
        metrics.refused(f"code_{number}")
    text = metrics.render().decode()
    assert value(text, "modelport_refusals_total") == 50
    assert value(text, "modelport_refusals_total", code="other") == 45


def test_the_values_of_several_processes_add_up_in_any_of_them(tmp_path: Path) -> None:
    environment = {**os.environ, "PROMETHEUS_MULTIPROC_DIR": str(tmp_path)}
    texts = [
        subprocess.run([sys.executable, "-c", WORKER], env=environment, check=True, capture_output=True, text=True)
        for _ in range(2)
    ]
    text = texts[-1].stdout
    assert value(text, "modelport_calls_total", model="m", status="200") == 2
    assert value(text, "modelport_tokens_total", kind="input") == 20
    assert value(text, "modelport_call_duration_seconds_count") == 2


def test_batches_are_taken_over_from_each_models_own_figures_once() -> None:
    """Versions of a model count together; one that is unloaded takes nothing back."""
    metrics, first, second = Metrics(), Figures(), Figures()
    sources = [("m", first), ("m", second)]
    metrics.batches.watch(lambda: sources)
    first.sizes.add(8)
    first.waits_s.add(0.02)
    first.refused, first.expired, first.waiting = 2, 1, 3
    second.sizes.add(1)
    second.waiting = 4
    metrics.render()
    first.sizes.add(8)
    text = metrics.render().decode()
    assert value(text, "modelport_backend_batch_size_count", model="m") == 3
    assert value(text, "modelport_backend_batch_size_sum") == 17
    assert value(text, "modelport_backend_batch_size_bucket", le="4.0") == 1
    assert value(text, "modelport_backend_queue_seconds_bucket", le="0.025") == 1
    assert value(text, "modelport_backend_queue_depth", model="m") == 7
    assert value(text, "modelport_backend_refusals_total", reason="late") == 2
    assert value(text, "modelport_backend_refusals_total", reason="expired") == 1
    sources.clear()
    assert value(metrics.render().decode(), "modelport_backend_batch_size_count", model="m") == 3
