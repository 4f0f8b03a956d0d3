"""The error contract of WIRE.md: one body everywhere, the right advice to SDKs, and streams that say how they ended."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from modelport.api.documents import error_kinds
from modelport.backends.sandbox.failures import FAILURES
from tests.problems import check, check_end
from tests.rawhttp import Answer, RawClient, chat
from tests.serving import Server
from tests.waiting import wait_until

CONFIG = """
default_models = false
[[models]]
id = "sandbox"
backend = "sandbox"
[server]
drain_s = 0.5
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with Server(tmp_path_factory.mktemp("errors"), config=CONFIG) as server:
        yield server


def ask(server: Server, method: str, path: str, *, key: str = "", body: Any = None) -> Answer:
    return Answer(*server.request(method, path, body=body, key=key))


def call(server: Server, text: str, *, model: str = "sandbox", **members: Any) -> Answer:
    body = {"model": model, "messages": [{"role": "user", "content": text}], **members}
    return ask(server, "POST", "/v1/chat/completions", key=server.credentials["api_key"], body=body)


@pytest.mark.parametrize("name", FAILURES)
@pytest.mark.parametrize("stream", [False, True])
def test_every_failure_of_a_model_keeps_the_contract(server: Server, name: str, stream: bool) -> None:
    error = FAILURES[name]()
    answer = call(server, f"[[error:{name}]]", stream=stream)
    check(answer, error.status, error.code, path="/v1/chat/completions")


@pytest.mark.parametrize("method", ["GET", "POST", "PUT", "PATCH", "DELETE", "TRACE", "OPTIONS"])
@pytest.mark.parametrize(
    "path", ["/nowhere", "/v1", "/v1/chat/completions/", "/v1/api_keys/", "/%2e%2e/etc", "/static/x"]
)
def test_what_is_not_there_is_a_404_in_the_house_form(server: Server, method: str, path: str) -> None:
    check(ask(server, method, path), 404, "not_found")


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("GET", "/v1/chat/completions", {"POST", "OPTIONS"}),
        ("OPTIONS", "/v1/predict", {"POST", "OPTIONS"}),
        ("PUT", "/v1/api_keys", {"GET", "HEAD", "POST", "OPTIONS"}),
        ("POST", "/v1/api_keys/x", {"GET", "HEAD", "PATCH", "DELETE", "OPTIONS"}),
        ("DELETE", "/livez", {"GET", "HEAD", "OPTIONS"}),
        ("POST", "/v1/models/sandbox", {"GET", "HEAD", "OPTIONS"}),
    ],
)
def test_a_wrong_method_is_told_the_right_ones(server: Server, method: str, path: str, allowed: set[str]) -> None:
    answer = ask(server, method, path)
    check(answer, 405, "method_not_allowed", path=path)
    assert set(answer.headers["allow"].split(", ")) == allowed


@pytest.mark.parametrize(
    ("path", "status", "code"),
    [
        ("/v1/models/nobody", 404, "model_not_found"),
        ("/v1/models/nobody/versions", 404, "model_not_found"),
        ("/v1/api_keys/key_nobody", 404, "not_found"),
        ("/v1/api_keys/%00", 400, "invalid_request_error"),
        ("/v1/api_keys/" + "x" * 65, 400, "invalid_request_error"),
        ("/v1/api_keys?limit=x", 400, "invalid_request_error"),
        ("/v1/api_keys?after=%00", 400, "invalid_request_error"),
        ("/v1/api_keys?order=%ff", 400, "invalid_request_error"),
        ("/v1/requests/req_nobody", 404, "not_found"),
        ("/v1/usage?start=yesterday", 400, "invalid_request_error"),
        ("/v1/usage?start=99999999999999999999", 400, "invalid_request_error"),
        ("/v1/usage?group_by=a'b", 400, "invalid_request_error"),
        ("/errors/nobody", 404, "not_found"),
    ],
)
def test_management_errors_keep_the_contract(server: Server, path: str, status: int, code: str) -> None:
    check(ask(server, "GET", path, key=server.credentials["api_key"]), status, code)


def test_a_cut_stream_of_the_sandbox_ends_with_an_error(server: Server) -> None:
    answer = call(server, "[[cut:3]]", stream=True)
    assert "error" in check_end(answer)


def test_a_stream_that_the_servers_stop_cuts_short_says_so(tmp_path: Path) -> None:
    server = Server(tmp_path, config=CONFIG).start()
    with RawClient(server.port) as client:
        client.send(chat(server.credentials["api_key"], "[[hang:2]]", stream=True))
        assert client.line().startswith(b"HTTP/1.1 200")
        assert server.stop() == 0
        assert b'data: {"error"' in client.rest()


def test_every_code_has_its_page(server: Server) -> None:
    for code in error_kinds():
        assert (ask(server, "GET", f"/errors/{code}")).status == 200


async def test_a_fault_of_ours_is_a_500_that_tells_nothing(server: Server) -> None:
    with sqlite3.connect(server.data_dir / "modelport.db") as database:
        database.execute("ALTER TABLE api_keys RENAME COLUMN name TO gone")
    try:
        answer = ask(server, "GET", "/v1/api_keys", key=server.credentials["api_key"])
        check(answer, 500, "internal_error", path="/v1/api_keys")
    finally:
        with sqlite3.connect(server.data_dir / "modelport.db") as database:
            database.execute("ALTER TABLE api_keys RENAME COLUMN gone TO name")
    await wait_until(lambda: "OperationalError" in server.log, "the log has what the answer doesn't")
