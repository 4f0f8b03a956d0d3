"""A server that stops takes leave of connections that clients keep: no request on one of them is lost."""

from __future__ import annotations

import http.client
from pathlib import Path

from tests.serving import Server

CONFIG = """
default_models = false
[[models]]
id = "sandbox"
backend = "sandbox"
"""
ENOUGH = 100_000


def test_a_kept_connection_is_told_that_its_last_answer_is_the_last(tmp_path: Path) -> None:
    server = Server(tmp_path, config=CONFIG).start()
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
    connection.request("GET", "/livez")
    assert connection.getresponse().read() == b'{"status":"ok"}'
    assert server.process is not None
    server.process.terminate()
    for _ in range(ENOUGH):
        connection.request("GET", "/livez")
        answer = connection.getresponse()
        assert answer.status == 200
        answer.read()
        if answer.getheader("connection") == "close":
            break
    else:
        raise AssertionError("the server never said that it stops")
    connection.close()
    assert server.process.wait(timeout=60) == 0
