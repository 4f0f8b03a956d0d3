"""What metering costs a call: `python -m bench.journal` prints microseconds of processor time per call."""

from __future__ import annotations

import asyncio
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from tests.store.metering import call, event

from modelport.calls import Served, Usage
from modelport.db.engine import open_database
from modelport.db.migrate import migrate
from modelport.kit.clock import SystemClock
from modelport.kit.outbox import outbox_of
from modelport.metering.journal import Journal
from modelport.metering.ledger import Ledger
from modelport.metering.model import Price
from modelport.metering.prices import PriceBook
from modelport.observe import logs
from modelport.observe.metrics import Metrics
from modelport.observe.tracing import Trace
from modelport.settings import LogSettings, MeteringSettings

CALLS = 40_000
# How many records one turn of a loaded worker's loop has (measured with 64 clients); they are one write.
RECORDS_A_TURN = 28
ROUNDS = 5


def main() -> None:
    logs.configure(LogSettings(format="json"))
    with tempfile.TemporaryDirectory(dir=Path.cwd()) as name:
        for line, us in asyncio.run(_measure(Path(name))):
            print(f"{line:<52} {us:8.2f} µs")


async def _measure(directory: Path) -> list[tuple[str, float]]:
    return [
        ("journal: open and close record, one write a turn", _journal(directory / "journal")),
        *await _ledger(directory),
        ("price of a call", _prices(directory)),
        ("metrics of a call", _metrics()),
        ("trace context, in and out", _best(_trace)),
    ]


def _journal(directory: Path) -> float:
    waiting = 0

    def flush_soon() -> None:
        nonlocal waiting
        waiting = RECORDS_A_TURN

    journal = Journal(directory, segment_bytes=16_000_000, flush_soon=flush_soon)
    journal.start()
    begun, ended = event("req_" + "0" * 32, status=500), event("req_" + "0" * 32)

    def pair() -> None:
        nonlocal waiting
        journal.append_open(begun)
        journal.append_close(ended)
        waiting -= 2
        if waiting <= 0:
            journal.flush()
        if journal.closes % 500 == 0:
            journal.mark_committed(journal.closes)

    found = _best(pair)
    journal.mark_committed(journal.closes)
    journal.close()
    return found


async def _ledger(directory: Path) -> list[tuple[str, float]]:
    """The loop's time for open and close, then the processor's for the commit, per call."""
    db = open_database("", data_dir=directory, pool_size=2)
    await migrate(db)
    settings = MeteringSettings(commit_interval_s=600, commit_batch=500)
    ledger = Ledger(db, clock=SystemClock(), settings=settings, directory=directory / "ledger")
    await ledger.start()
    outbox = outbox_of(asyncio.get_running_loop())
    calls = [(call(f"req_{number:032x}"), event(f"req_{number:032x}")) for number in range(8_000)]
    started = time.thread_time()
    for number, (begun, ended) in enumerate(calls):
        ledger.open(begun, model="m", version="1", backend="b")
        ledger.close(ended)
        if number % (RECORDS_A_TURN // 2) == 0:
            # What a turn of the loop recorded is written at its end.
            outbox.flush()
    hot_us = (time.thread_time() - started) / len(calls) * 1e6
    cpu = time.process_time()
    await ledger.flush()
    commit_us = (time.process_time() - cpu) / len(calls) * 1e6
    await ledger.close_all()
    await db.close()
    return [("ledger: open and close", hot_us), ("ledger: commit into SQLite, processor time", commit_us)]


def _prices(directory: Path) -> float:
    book = PriceBook(open_database("", data_dir=directory, pool_size=1), clock=SystemClock())
    book._prices = {"m": [Price("price_1", "m", 0, 150_000_000, 75_000_000, 600_000_000)]}
    usage = Usage(1_000, 200, cached_tokens=10)
    return _best(lambda: book.cost("m", usage, at_us=1, latency_us=9, discount_basis_points=0))


def _metrics() -> float:
    metrics, usage, served = Metrics(), Usage(1_000, 200), Served("m", "1", "openai", "m")
    return _best(
        lambda: metrics.call_ended(
            "/v1/chat/completions", served, 200, latency_us=12_345, first_token_us=900, usage=usage
        )
    )


def _trace() -> None:
    Trace.from_headers(None, None, own="0" * 32).header()


def _best(action: Callable[[], object]) -> float:
    """Microseconds a time, in the fastest of some rounds: the machine has other work."""
    found = []
    for _ in range(ROUNDS):
        started = time.thread_time()
        for _ in range(CALLS // ROUNDS):
            action()
        found.append((time.thread_time() - started) / (CALLS // ROUNDS) * 1e6)
    return min(found)


if __name__ == "__main__":
    main()
