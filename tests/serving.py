"""A real `modelport serve` in a directory of its own, for tests that come in through the front door."""

from __future__ import annotations

import ctypes
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

_PR_SET_PDEATHSIG = 1
_START_TIMEOUT_S = 90.0


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def die_with_parent() -> None:
    """Between fork and exec: have the kernel end the child when the test's process ends."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


class Server:
    """Started with `start`; the data directory outlives it, so that it can be killed and started again."""

    def __init__(
        self, directory: Path, *, config: str = "", env: dict[str, str] | None = None, workers: int = 1
    ) -> None:
        self.data_dir = directory / "data"
        self.port = free_port()
        self._config = directory / "modelport.toml"
        self._config.write_text(config)
        self._log = directory / "serve.log"
        self._env = {**os.environ, **(env or {})}
        self._workers = workers
        self.process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Server:
        return self.start()

    def __exit__(self, kind: object, *_: object) -> None:
        """Stop it; a test that went well must also see it end well."""
        code = self.stop() if self.process is not None and self.process.poll() is None else 0
        if kind is None:
            assert code == 0, f"the server ended with {code}:\n{self.log[-4000:]}"

    @property
    def base_url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def log(self) -> str:
        return self._log.read_text(errors="replace")

    @property
    def credentials(self) -> dict[str, str]:
        content: dict[str, str] = json.loads((self.data_dir / "credentials.json").read_text())
        return content

    def start(self, *, models: bool = True) -> Server:
        """Start and wait until it takes calls; with `models`, until every model is ready."""
        command = [sys.executable, "-m", "modelport.cli", "serve", "--port", str(self.port)]
        command += ["--data-dir", str(self.data_dir), "--config", str(self._config), "--workers", str(self._workers)]
        with self._log.open("ab") as log:
            self.process = subprocess.Popen(
                command, stdout=log, stderr=log, env=self._env, preexec_fn=die_with_parent, start_new_session=True
            )
        give_up = time.monotonic() + _START_TIMEOUT_S
        while not self._is_up(models):
            if self.process.poll() is not None or time.monotonic() > give_up:
                self.process.kill()
                self.process.wait()
                raise AssertionError(f"the server did not come up:\n{self.log[-4000:]}")
            time.sleep(0.05)
        return self

    def _is_up(self, models: bool) -> bool:
        try:
            status, body = self.get("/readyz")
        except (OSError, http.client.HTTPException):
            return False
        return status == 200 and (not models or all(m["status"] == "ok" for m in body["models"].values()))

    def get(self, path: str, *, key: str = "") -> tuple[int, Any]:
        """One GET by hand: status and JSON body."""
        status, _, body = self.request("GET", path, key=key)
        return status, json.loads(body)

    def request(
        self, method: str, path: str, *, body: Any = None, key: str = "", headers: dict[str, str] | None = None
    ) -> tuple[int, dict[str, str], bytes]:
        """One request by hand. A `body` that is no bytes is sent as JSON."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        sent = dict(headers or {})
        if key:
            sent["authorization"] = f"Bearer {key}"
        if body is not None and not isinstance(body, bytes):
            body = json.dumps(body).encode()
            sent.setdefault("content-type", "application/json")
        try:
            connection.request(method, path, body=body, headers=sent)
            answer = connection.getresponse()
            return answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read()
        finally:
            connection.close()

    def workers(self) -> list[int]:
        """The process ids of all that the server started, directly or not."""
        assert self.process is not None
        found: list[int] = []
        queue = [self.process.pid]
        while queue:
            path = Path(f"/proc/{queue.pop()}/task")
            for task in path.glob("*/children"):
                try:
                    children = [int(pid) for pid in task.read_text().split()]
                except FileNotFoundError:
                    # A thread that ended while we looked.
                    continue
                found += children
                queue += children
        return found

    def stop(self) -> int:
        """SIGTERM, and the exit code."""
        assert self.process is not None
        self.process.terminate()
        return self.process.wait(timeout=60)

    def kill(self) -> None:
        """SIGKILL for the server and everything it started."""
        assert self.process is not None
        pids = self.workers()
        self.process.kill()
        self.process.wait()
        for pid in pids:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        for pid in pids:
            while Path(f"/proc/{pid}").exists() and _state(pid) not in "ZX":
                time.sleep(0.005)


def _state(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return "X"
