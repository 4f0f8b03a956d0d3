"""More calls than a worker can answer in time: some are answered, the others told at once to come again."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import pytest

from tests.problems import check
from tests.rawhttp import Answer, RawClient, chat, request
from tests.serving import Server

CONFIG = """
default_models = false
[server]
longest_wait_ms = 0.1
[[models]]
id = "sandbox"
backend = "sandbox"
"""
CLIENTS = 64


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with Server(tmp_path_factory.mktemp("flood"), config=CONFIG) as server:
        yield server


def flood(server: Server, message: bytes) -> list[Answer]:
    """The answers to the same request on many connections at once, again and again on each."""
    clients = [RawClient(server.port) for _ in range(CLIENTS)]
    answers = []
    for _ in range(4):
        for client in clients:
            client.send(message)
        answers += [client.answer() for client in clients]
    for client in clients:
        client.close()
    return answers


def test_calls_beyond_are_refused_in_the_house_s_own_form_and_connections_stay(server: Server) -> None:
    answers = flood(server, chat(server.credentials["api_key"], "[[tokens:1]]"))
    counts = Counter(answer.status for answer in answers)
    assert set(counts) == {200, 503}
    for answer in answers:
        if answer.status == 503:
            check(answer, 503, "overloaded")
            assert "connection" not in answer.headers


def test_health_is_told_all_the_same(server: Server) -> None:
    assert {answer.status for answer in flood(server, request("GET", "/livez"))} == {200}
