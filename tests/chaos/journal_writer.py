"""A process that keeps a ledger until it is killed. Each call that ended is told on standard output, after it did, the
way that answers leave: through the outbox of the event loop."""

from __future__ import annotations

import asyncio
import itertools
import os
import sys
from pathlib import Path

from modelport.kit.outbox import outbox_of
from tests.store.metering import call, database, event, ledger

CALLS_A_TURN = 20


class Output:
    """Standard output, as much of a transport as the outbox needs."""

    def is_closing(self) -> bool:
        return False

    def write(self, data: bytes) -> None:
        os.write(1, data)


async def main(name: str, data_dir: Path) -> None:
    outbox, output = outbox_of(asyncio.get_running_loop()), Output()
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
            outbox.write(output, f"{id}\n".encode())
            if number % CALLS_A_TURN == 0:
                await asyncio.sleep(0)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], Path(sys.argv[2])))
