"""A gateway worker's process: `python -m modelport.supervisor.worker`, started by the supervisor and by nobody else.

On the control socket one byte is one message: the supervisor sends `g` (the database is ready, begin), the worker
sends `r` (connections are accepted). End of file means that the supervisor is gone, and the worker goes with it.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
from contextlib import suppress
from pathlib import Path

import uvloop

from modelport.kit.lineage import die_with

GO = b"g"
READY = b"r"


def main(arguments: list[str]) -> None:
    """Run until told to stop. `arguments`: run directory, index, listening socket, control socket, parent's id, and 1
    where it takes another worker's place."""
    run_dir, index = Path(arguments[0]), int(arguments[1])
    listener = socket.socket(fileno=int(arguments[2]))
    control = socket.socket(fileno=int(arguments[3]))
    die_with(int(arguments[4]))
    # Ctrl-C reaches every process of the terminal; the supervisor alone decides how they stop.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    # Importing the whole platform takes longer than anything else here, so it overlaps with the supervisor's
    # migrations; the wait for its word comes after.
    from modelport.main import serve_worker

    control.setblocking(True)
    if control.recv(1) != GO:
        return
    import structlog

    from modelport.catalog.handover import Places, Seat, read_settings
    from modelport.errors import Unavailable

    async def run() -> None:
        loop = asyncio.get_running_loop()
        stop = asyncio.Event()
        loop.add_signal_handler(signal.SIGTERM, stop.set)
        control.setblocking(False)
        loop.add_reader(control, _exit_at_end_of_file, control)

        def ready() -> None:
            with suppress(OSError):
                control.send(READY)

        seat = Seat(
            index=index,
            socket=listener,
            places=Places(run_dir),
            stop=stop,
            ready=ready,
            successor=arguments[5] == "1",
        )
        await serve_worker(read_settings(run_dir), seat)

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        try:
            runner.run(run())
        except Unavailable as error:
            # The supervisor tries again, in growing intervals; until then the other workers go on.
            log = structlog.get_logger("modelport.supervisor")
            log.error("worker_not_started", reason=error.message, internal=error.internal)
            sys.exit(1)


def _exit_at_end_of_file(control: socket.socket) -> None:
    with suppress(BlockingIOError):
        if not control.recv(16):
            os._exit(1)


if __name__ == "__main__":
    main(sys.argv[1:])
