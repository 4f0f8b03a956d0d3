"""`modelport serve`: it starts or says why not, survives its workers, and stops without losing a call."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from tests.serving import Server
from tests.waiting import wait_until

SANDBOX = "default_models = false\n[[models]]\nid = 'sandbox'\nbackend = 'sandbox'\n"


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    server = Server(tmp_path, config=SANDBOX).start()
    yield server
    server.kill()


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[Server]:
    server = Server(tmp_path, config=SANDBOX, workers=2).start()
    yield server
    server.kill()


def serve(*arguments: str) -> subprocess.CompletedProcess[str]:
    """A start that is expected to be refused."""
    command = [sys.executable, "-m", "modelport.cli", "serve", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def chat(server: Server, text: str = "[[tokens:2]]") -> int:
    body = {"model": "sandbox", "messages": [{"role": "user", "content": text}]}
    return server.request("POST", "/v1/chat/completions", body=body, key=server.credentials["api_key"])[0]


@contextmanager
def open_stream(server: Server, text: str) -> Iterator[http.client.HTTPResponse]:
    body = {"model": "sandbox", "stream": True, "messages": [{"role": "user", "content": text}]}
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
    headers = {"authorization": f"Bearer {server.credentials['api_key']}", "content-type": "application/json"}
    try:
        connection.request("POST", "/v1/chat/completions", json.dumps(body).encode(), headers)
        with connection.getresponse() as response:
            yield response
    finally:
        connection.close()


def gone(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return True
    return state in "ZX"


def test_a_second_server_on_the_same_data_is_refused(server: Server) -> None:
    done = serve("--port", "0", "--data-dir", str(server.data_dir))
    assert done.returncode == 2
    assert "another `modelport serve`" in done.stderr
    assert chat(server) == 200


def test_a_taken_port_is_named(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = serve("--port", str(port), "--data-dir", str(tmp_path / "data"))
    assert done.returncode == 2
    assert f"port {port}" in done.stderr
    assert "Traceback" not in done.stderr


def test_wrong_settings_are_named_before_anything_is_written(tmp_path: Path) -> None:
    config = tmp_path / "modelport.toml"
    config.write_text("[server]\nprot = 1\n")
    done = serve("--config", str(config), "--data-dir", str(tmp_path / "data"))
    assert done.returncode == 2
    assert "server.prot" in done.stderr
    assert not (tmp_path / "data").exists()


def test_a_database_of_a_newer_version_is_refused(server: Server) -> None:
    server.stop()
    with closing(sqlite3.connect(server.data_dir / "modelport.db")) as database, database:
        database.execute("UPDATE alembic_version SET version_num = '9999'")
    done = serve("--port", "0", "--data-dir", str(server.data_dir))
    assert done.returncode == 2
    assert "9999" in done.stderr


def test_credentials_are_shown_once_and_kept_private(server: Server) -> None:
    key = server.credentials["api_key"]
    assert key in server.log
    assert (server.data_dir / "credentials.json").stat().st_mode & 0o777 == 0o600
    assert server.data_dir.stat().st_mode & 0o777 == 0o700
    assert server.stop() == 0
    before = len(server.log)
    server.start()
    assert key not in server.log[before:]
    assert server.credentials["api_key"] == key
    assert chat(server) == 200


def test_credentials_follow_the_servers_address(server: Server) -> None:
    """Commands read it there, and the next start may be on another port."""
    server.stop()
    other = Server(server.data_dir.parent, config=SANDBOX).start()
    try:
        assert other.credentials["base_url"] == other.base_url
    finally:
        other.kill()


async def test_a_worker_that_dies_is_replaced(server: Server) -> None:
    (worker,) = server.workers()
    os.kill(worker, signal.SIGKILL)
    await wait_until(lambda: [pid for pid in server.workers() if pid != worker] != [], "another worker is there")
    # The socket stays open in between, so this call waits for the new worker instead of failing.
    assert chat(server) == 200
    assert "worker_died" in server.log


async def test_nothing_outlives_a_killed_supervisor(pair: Server) -> None:
    assert pair.process is not None
    workers = pair.workers()
    assert len(workers) == 2
    pair.process.kill()
    pair.process.wait()
    await wait_until(lambda: all(gone(pid) for pid in workers), "every worker is gone")
    pair.start()
    assert chat(pair) == 200


def test_sigterm_lets_a_stream_end(server: Server) -> None:
    assert server.process is not None
    with open_stream(server, "[[tokens:20]] [[per_token:50ms]]") as response:
        assert response.readline().startswith(b"data:")
        server.process.terminate()
        rest = response.read()
    assert rest.endswith(b"data: [DONE]\n\n")
    assert server.process.wait(timeout=30) == 0
    assert "stopped" in server.log


async def test_sighup_exchanges_the_workers_without_losing_a_call(pair: Server) -> None:
    """While calls keep coming, every worker is replaced by one with the settings as the file has them by then."""
    assert pair.process is not None
    before = set(pair.workers())
    stop = threading.Event()
    statuses: list[int] = []

    def call_on() -> None:
        while not stop.is_set():
            statuses.append(chat(pair))

    caller = threading.Thread(target=call_on)
    caller.start()
    try:
        pair.process.send_signal(signal.SIGHUP)
        await wait_until(lambda: "every worker is new" in pair.log, "the workers are exchanged", timeout_s=120)
    finally:
        stop.set()
        caller.join()
    assert set(statuses) == {200}
    assert before.isdisjoint(pair.workers())


async def test_sighup_with_broken_settings_changes_nothing(server: Server) -> None:
    assert server.process is not None
    before = server.workers()
    (server.data_dir.parent / "modelport.toml").write_text("[server]\nprot = 1\n")
    server.process.send_signal(signal.SIGHUP)
    await wait_until(lambda: "nothing changes" in server.log, "the mistake is told")
    assert server.workers() == before
    assert chat(server) == 200


async def test_sighup_waits_with_one_workers_memory(server: Server) -> None:
    """Limits counted in one process's memory must not be counted in two at once."""
    assert server.process is not None
    before = server.workers()
    server.process.send_signal(signal.SIGHUP)
    await wait_until(lambda: "every worker is new" in server.log, "the worker is exchanged", timeout_s=120)
    assert len(server.workers()) == 1
    assert server.workers() != before
    assert chat(server) == 200
