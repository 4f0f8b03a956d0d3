"""A worker's server: uvicorn around the platform, without signals or ticks of its own."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import sys
from collections.abc import Iterator

import uvicorn

from modelport.api.app import build_app
from modelport.api.connection import connection_class
from modelport.api.platform import Platform
from modelport.catalog.handover import Seat
from modelport.main.platform import open_platform
from modelport.observe import logs
from modelport.settings import Settings

# Containers made beyond those freed before the youngest are looked through, and how many such looks make an older one.
_GC_YOUNG = 50_000
_GC_OLDER = (10, 50)


async def serve_worker(settings: Settings, seat: Seat) -> None:
    """Serve on the seat's socket until its `stop` is set, then drain and return."""
    logs.configure(settings.log)
    async with open_platform(settings, seat.places) as platform:
        config = uvicorn.Config(
            build_app(platform),
            http=connection_class(settings.server, platform.ids),
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            timeout_keep_alive=round(settings.server.keep_alive_s),
            timeout_graceful_shutdown=round(settings.server.drain_s),
        )
        server = _Server(config, seat, platform)
        await server.serve(sockets=[seat.socket])


class _Server(uvicorn.Server):
    """uvicorn without signals of its own: the seat says when it stops, and is told when it listens."""

    def __init__(self, config: uvicorn.Config, seat: Seat, platform: Platform) -> None:
        super().__init__(config)
        self._seat = seat
        self._platform = platform

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    async def main_loop(self) -> None:
        """Instead of uvicorn's own, which wakes ten times a second: sleep until told to stop."""
        _calm_garbage_collector()
        # The loop keeps a weak set of every asynchronous generator, to close those that are left when it ends. Ours are
        # closed by whoever runs them, and keeping the set takes 3 % of a call. A forgotten one is still finalized.
        sys.set_asyncgen_hooks(firstiter=None)
        self._seat.ready()
        watching = asyncio.create_task(self._platform.metrics.observe_forever())
        await self._seat.stop.wait()
        watching.cancel()
        self._platform.phase.draining = True
        self.should_exit = True


def _calm_garbage_collector() -> None:
    """Leave what start-up made out of every later collection, and collect less often.

    A call makes some hundred short-lived containers. With Python's own thresholds the whole heap (the libraries'
    modules and schemas) was walked so often that it took over a third of a call's processor time.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(_GC_YOUNG, *_GC_OLDER)
