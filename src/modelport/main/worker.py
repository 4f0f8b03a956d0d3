"""A worker's life: the platform is opened, requests are answered until the seat says stop, then both are closed."""

from __future__ import annotations

import asyncio
import gc
import sys

from modelport.api.app import build_app
from modelport.api.server import Server
from modelport.catalog.handover import Seat
from modelport.kit.gathering import gathering_of
from modelport.main.platform import open_platform
from modelport.observe import logs
from modelport.observe.lag import LoopLag
from modelport.settings import Settings

# A model that takes longer to load is told of with 503, as at a start.
_LOAD_S = 15.0
# Containers made beyond those freed before the youngest are looked through, and how many such looks make an older one.
_GC_YOUNG = 50_000
_GC_OLDER = (10, 50)


async def serve_worker(settings: Settings, seat: Seat) -> None:
    """Serve on the seat's socket until its `stop` is set, then drain and return."""
    logs.configure(settings.log)
    async with open_platform(settings, seat.places) as platform:
        edge = build_app(platform)
        server = Server(edge.answer, edge.turn_away, settings=settings.server, ids=platform.ids)
        gathering_of(asyncio.get_running_loop()).most_s = settings.server.stream_gather_s
        _calm_garbage_collector()
        # The loop keeps a weak set of every asynchronous generator, to close those that are left when it ends. Ours are
        # closed by whoever runs them, and keeping the set takes 3 % of a call. A forgotten one is still finalized.
        sys.set_asyncgen_hooks(firstiter=None)
        if seat.successor:
            # The others, or the one that it relieves, answer meanwhile.
            await platform.catalog.loaded(most_s=_LOAD_S)
        await server.start(seat.socket)
        seat.ready()
        watching = asyncio.create_task(platform.metrics.observe_forever())
        lag = LoopLag(platform.metrics.loop_lag)
        lag.start()
        await seat.stop.wait()
        lag.stop()
        watching.cancel()
        platform.phase.draining = True
        await server.stop()


def _calm_garbage_collector() -> None:
    """Leave what start-up made out of every later collection, and collect less often.

    A call makes some hundred short-lived containers. With Python's own thresholds the whole heap (the libraries'
    modules and schemas) was walked so often that it took over a third of a call's processor time.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(_GC_YOUNG, *_GC_OLDER)
