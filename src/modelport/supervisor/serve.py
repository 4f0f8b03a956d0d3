"""`modelport serve`: everything on this machine, started in an order that hides the waiting, and stopped in reverse.

data directory locked, socket bound          refusals come first, before anything is started
workers spawned  ┐ they import the platform
database migrated│ while this process migrates,
models placed    ┘ resolves sources and starts engines
workers begin ── all accept connections ── "serving on …"
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
import time
from collections.abc import Callable
from contextlib import AsyncExitStack

from modelport import __version__
from modelport.catalog.handover import write_settings
from modelport.observe import logs
from modelport.settings import Settings
from modelport.supervisor import listener as sockets
from modelport.supervisor.crew import Berth, Crew
from modelport.supervisor.datadir import DataDirectory, held
from modelport.supervisor.first_start import prepare_database
from modelport.supervisor.models import ModelRoom
from modelport.supervisor.registry import RegistryWatch
from modelport.supervisor.terminal import Terminal
from modelport.supervisor.waits import first


def serve(settings: Settings, *, reload: Callable[[], Settings], terminal: Terminal) -> None:
    """Serve until SIGTERM or SIGINT, then drain. `reload` reads the settings anew, for SIGHUP.

    Raises: StartRefused with a sentence for the person who asked.
    """
    with held(settings.data_dir.expanduser().resolve()) as directory:
        listener = sockets.listen(settings.server.host, settings.server.port)
        with listener:
            asyncio.run(_Supervisor(settings, directory, listener, reload=reload, terminal=terminal).run())


class _Supervisor:
    def __init__(
        self,
        settings: Settings,
        directory: DataDirectory,
        listener: socket.socket,
        *,
        reload: Callable[[], Settings],
        terminal: Terminal,
    ) -> None:
        self._directory = directory
        self._listener = listener
        self._reload = reload
        self._terminal = terminal
        self._started_s = time.monotonic()
        self._settings = self._placed(settings)
        self._stop = asyncio.Event()
        self._hung_up = asyncio.Event()
        # Told by whether a terminal is there at the start: then its end means "stop", as for any program.
        self._on_terminal = os.isatty(sys.stdin.fileno()) if sys.stdin is not None else False

    async def run(self) -> None:
        settings, directory = self._settings, self._directory
        logs.configure(settings.log)
        write_settings(directory.run_dir, settings)
        async with AsyncExitStack() as stack:
            self._listen_to_signals()
            models = ModelRoom(settings, directory.run_dir, terminal=self._terminal)
            stack.push_async_callback(models.close)
            models.publish()
            metrics_dir = directory.metrics_dir if settings.server.workers > 1 else None
            crew = Crew(
                Berth(directory.run_dir, self._listener, directory.lock_fd, metrics_dir),
                size=settings.server.workers,
                drain_s=settings.server.drain_s,
            )
            stack.push_async_callback(crew.drain)
            await crew.spawn()
            models.start()
            base_url = settings.server.public_url or sockets.base_url(self._listener)
            newcomer = await prepare_database(settings, base_url=base_url)
            registry = RegistryWatch(settings, models)
            await registry.start()
            stack.push_async_callback(registry.close)
            crew.begin()
            await first(self._stop.wait(), crew.ready())
            if not self._stop.is_set():
                self._announce(base_url, newcomer)
            await self._watch(crew)
            # From here on new connections are refused as soon as the last worker stops accepting.
            self._listener.close()
            self._terminal.say("stopping: calls in flight end first (again Ctrl-C: at once)")
            self._on_second_signal(crew)
        self._terminal.say("stopped")

    def _placed(self, settings: Settings) -> Settings:
        """The settings with what only this start knows: the absolute directory and the real port."""
        server = settings.server.model_copy(update={"port": self._listener.getsockname()[1]})
        return settings.model_copy(update={"data_dir": self._directory.path, "server": server})

    def _announce(self, base_url: str, newcomer: str) -> None:
        took_s = time.monotonic() - self._started_s
        workers = self._settings.server.workers
        self._terminal.say(
            f"Modelport {__version__} serves on {base_url} with {workers} worker{'s' * (workers > 1)}, "
            f"up in {took_s:.1f} s. API documentation: {base_url}/docs\n{newcomer}"
        )

    async def _watch(self, crew: Crew) -> None:
        """Return when it is time to stop; exchange the workers for each SIGHUP until then."""
        while not self._stop.is_set():
            await first(self._stop.wait(), self._hung_up.wait(), crew.failure())
            if self._hung_up.is_set() and not self._stop.is_set():
                self._hung_up.clear()
                await self._exchange(crew)

    async def _exchange(self, crew: Crew) -> None:
        try:
            settings = self._placed(self._reload())
        except (ValueError, OSError) as error:
            self._terminal.say(f"SIGHUP: the settings are not valid, so nothing changes: {error}")
            return
        write_settings(self._directory.run_dir, settings)
        self._terminal.say("SIGHUP: exchanging the workers")
        alone = settings.state.url == "memory" or (settings.state.url == "auto" and settings.server.workers == 1)
        await first(self._stop.wait(), crew.replace(overlap=not alone))
        if not self._stop.is_set():
            self._terminal.say("SIGHUP: every worker is new")

    def _listen_to_signals(self) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop.set)
        loop.add_signal_handler(signal.SIGHUP, self._on_hang_up)

    def _on_hang_up(self) -> None:
        if self._on_terminal and not os.isatty(sys.stdin.fileno()):
            self._stop.set()
        else:
            self._hung_up.set()

    def _on_second_signal(self, crew: Crew) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, crew.kill)
