"""A process that keeps a ledger until it is killed. Each call that ended is told on standard output, after it did."""

from __future__ import annotations

import asyncio
import itertools
import os
import sys
from pathlib import Path

from tests.store.metering import call, database, event, ledger


async def main(name: str, data_dir: Path) -> None:
    async with (
        database("", data_dir) as db,
        ledger(db, data_dir, commit_interval_s=0.005, commit_batch=50, segment_bytes=20_000) as books,
    ):
        for number in itertools.count():
            id = f"{name}_{number}"
            books.open(call(id), model="m", version="1", backend="b")
            if number % 7 == 0:
                # Some calls are still running whenever the end comes.
                books.open(call(f"{id}_open"), model="m", version="1", backend="b")
            books.close(event(id, cost_nanos=number))
            os.write(1, f"{id}\n".encode())
            if number % 20 == 0:
                await asyncio.sleep(0)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], Path(sys.argv[2])))
