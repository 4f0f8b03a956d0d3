"""What many API keys cost: `python -m bench.scale [--keys 100000] [--cached 10000] [--seconds 4]`.

Through the front door: calls a second and processor time per call, with the keys in the database against without.
In one process: the memory of a key in the cache, and the time of the first call with a key that is not.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import itertools
import json
import secrets
import sqlite3
import sys
import tempfile
import time
import tracemalloc
from collections.abc import Sequence
from pathlib import Path

from tests.store.metering import database
from tests.store.world import ADDRESS, open_world

from bench.figures import OURS, WHOLE_64, Measurement
from bench.gateways import Bench, started
from modelport.access.keyring import KeyRing
from modelport.access.rules import hash_key, make_key
from modelport.settings import AccessSettings

_SCOPES = json.dumps(["inference", "models:read"])


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m bench.scale", description="What many API keys cost.")
    parser.add_argument("--keys", type=int, default=100_000, help="in the database (default 100,000)")
    parser.add_argument("--cached", type=int, default=10_000, help="in the cache (default 10,000)")
    parser.add_argument("--seconds", type=float, default=4.0, help="of each load (default 4)")
    options = parser.parse_args(arguments)
    with started([OURS]) as bench:
        empty = [_measure(bench, options.seconds) for _ in range(2)]
        inserted_s = _insert(_database(bench), options.keys)
        full = [_measure(bench, options.seconds) for _ in range(2)]
    print(f"{options.keys:,} keys inserted in {inserted_s:.1f} s")
    for name, value in (("calls/s", _speed), ("CPU µs a call", _cpu_us)):
        before, after = (sum(map(value, measured)) / len(measured) for measured in (empty, full))
        print(
            f"{name:<14} empty {before:10.1f}   with {options.keys:,} keys {after:10.1f}   ratio {after / before:.3f}"
        )
    with tempfile.TemporaryDirectory() as name:
        each_bytes, first_us = asyncio.run(_cache(Path(name), options.cached))
    print(f"a cached key   {each_bytes:,.0f} bytes; its first call reads the database for {first_us:,.0f} µs")
    return 0


def _measure(bench: Bench, seconds: float) -> Measurement:
    return bench.measure(WHOLE_64, OURS, seconds=seconds, warm_up_s=1.0)


def _speed(measured: Measurement) -> float:
    return measured.calls_per_s


def _cpu_us(measured: Measurement) -> float:
    return measured.cpu_us_per_call


def _database(bench: Bench) -> Path:
    return bench.folder / OURS / "data" / "modelport.db"


def _insert(path: Path, number: int) -> float:
    """Add keys beside the first one, as rows; the seconds that took."""
    began_s = time.monotonic()
    with sqlite3.connect(path, timeout=30) as database:
        organization, project = database.execute("SELECT organization_id, project_id FROM api_keys").fetchone()
        database.executemany(
            "INSERT INTO api_keys (id, organization_id, project_id, name, mode, prefix, last4, hash, scopes, operator,"
            " created_us) VALUES (?, ?, ?, 'scale', 'live', 'mp_live_', 'xxxx', ?, ?, 0, 0)",
            ((f"key_{n:032x}", organization, project, secrets.token_hex(32), _SCOPES) for n in range(number)),
        )
    return time.monotonic() - began_s


async def _cache(directory: Path, number: int) -> tuple[float, float]:
    """Bytes of a cached key, microseconds of reading one that is not cached."""
    async with database("", directory) as db, open_world(db) as here:
        owner = await here.tenant("scale")
        keys = [make_key("live") for _ in range(number)]
        async with here.db.begin() as conn:
            raw = await conn.get_raw_connection()
            await raw.driver_connection.executemany(  # type: ignore[union-attr]
                "INSERT INTO api_keys (id, organization_id, project_id, name, mode, prefix, last4, hash, scopes,"
                " operator, created_us) VALUES (?, ?, ?, 'scale', 'live', 'mp_live_', 'xxxx', ?, ?, 0, 0)",
                [
                    (f"key_{n:032x}", owner.organization_id, owner.project_id, hash_key(key).hex(), _SCOPES)
                    for n, key in zip(itertools.count(), keys)
                ],
            )
        ring = KeyRing(here.db, here.state, clock=here.clock, settings=AccessSettings(touch_interval_s=3600))
        await ring.start()
        timed, traced = keys[: number // 2], keys[number // 2 :]
        began_s = time.monotonic()
        for key in timed:
            await ring.authenticate(key, address=ADDRESS)
        took_s = time.monotonic() - began_s
        tracemalloc.start()
        for key in traced:
            await ring.authenticate(key, address=ADDRESS)
        gc.collect()
        kept_bytes, _ = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        await ring.close()
    return kept_bytes / len(traced), took_s * 1e6 / len(timed)


if __name__ == "__main__":
    sys.exit(main())
