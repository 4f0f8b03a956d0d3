"""Deprecations: announce the end of a route, a model or a version, and let it end by itself."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import openai
import pytest
from openai import OpenAI

from tests.problems import check
from tests.rawhttp import Answer
from tests.serving import Server

CONFIG = """
default_models = false

[[deprecations]]
route = "/v1/embeddings"
deprecated_at = 2020-01-01T00:00:00Z
sunset_at = 2020-06-01T00:00:00Z
successor = "/v2/embeddings"

[[deprecations]]
route = "/v1/models/*"
deprecated_at = 2026-01-01T00:00:00Z
sunset_at = 2999-12-31T23:59:59Z
link = "https://example.com/models"

[[models]]
id = "old"
backend = "sandbox"
deprecation = { deprecated_at = 2020-01-01T00:00:00Z, sunset_at = 2999-01-01T00:00:00Z, successor = "new" }

[[models]]
id = "older"
backend = "sandbox"
deprecation = { deprecated_at = 2020-01-01T00:00:00Z, sunset_at = 2020-06-01T00:00:00Z, successor = "new" }

[[models]]
id = "new"
backend = "sandbox"
versions = [
  { version = "1", source = "sandbox:1", deprecation = { deprecated_at = 2020-01-01T00:00:00Z, successor = "new@2" } },
  { version = "2", source = "sandbox:2" },
]
"""
TOLD = {"deprecation", "sunset", "link"}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with Server(tmp_path_factory.mktemp("deprecations"), config=CONFIG) as server:
        yield server


def ask(server: Server, method: str, path: str, body: Any = None) -> Answer:
    return Answer(*server.request(method, path, body=body, key=server.credentials["api_key"]))


def chat(server: Server, model: str, **members: Any) -> Answer:
    body = {"model": model, "messages": [{"role": "user", "content": "[[tokens:2]]"}], **members}
    return ask(server, "POST", "/v1/chat/completions", body)


@pytest.mark.parametrize("stream", [False, True])
def test_every_answer_of_a_model_that_ends_says_when(server: Server, stream: bool) -> None:
    answer = chat(server, "old", stream=stream)
    assert answer.status == 200
    assert answer.headers["deprecation"] == "@1577836800"
    assert answer.headers["sunset"] == "Tue, 01 Jan 2999 00:00:00 GMT"
    assert answer.headers["link"].endswith('</v1/models/new>; rel="successor-version"')
    assert not TOLD & set(chat(server, "new").headers)
    assert "sunset" not in chat(server, "new@1").headers
    assert chat(server, "new@1").headers["deprecation"]


def test_after_its_sunset_a_model_is_gone_and_names_its_successor(server: Server) -> None:
    answer = chat(server, "older")
    check(answer, 410, "gone")
    assert "use 'new' instead" in answer.json()["detail"]
    assert answer.headers["link"].endswith('</v1/models/new>; rel="successor-version"')
    with (
        OpenAI(base_url=f"{server.base_url}/v1", api_key=server.credentials["api_key"]) as sdk,
        pytest.raises(openai.APIStatusError) as caught,
    ):
        sdk.responses.create(model="older", input="x")
    assert caught.value.status_code == 410


def test_a_route_tells_its_end_on_every_answer_and_is_gone_after_it(server: Server) -> None:
    gone = ask(server, "POST", "/v1/embeddings", {"model": "new", "input": "x"})
    check(gone, 410, "gone", path="/v1/embeddings")
    assert gone.headers["link"].endswith('</v2/embeddings>; rel="successor-version"')
    assert set(ask(server, "GET", "/v1/embeddings").headers) >= TOLD
    for path, status in (("/v1/models/new", 200), ("/v1/models/nobody", 404)):
        answer = ask(server, "GET", path)
        assert answer.status == status
        assert answer.headers["sunset"] == "Tue, 31 Dec 2999 23:59:59 GMT"
        assert answer.headers["link"].startswith('<https://example.com/models>; rel="deprecation"')
    assert not TOLD & set(ask(server, "GET", "/v1/models").headers)


def test_the_list_has_all_that_ends(server: Server) -> None:
    rows = ask(server, "GET", "/v1/deprecations").json()["data"]
    assert [(row["id"], row["stage"]) for row in rows] == [
        ("route:/v1/embeddings", "gone"),
        ("route:/v1/models/*", "deprecated"),
        ("model:old", "deprecated"),
        ("model:older", "gone"),
        ("version:new@1", "deprecated"),
    ]
    assert rows[2]["sunset_at"] == "2999-01-01T00:00:00Z"
    assert rows[2]["successor"] == "new"


def test_a_model_shows_its_own_end_and_its_versions(server: Server) -> None:
    assert ask(server, "GET", "/v1/models/old").json()["deprecation"] == {
        "deprecated_at": "2020-01-01T00:00:00Z",
        "sunset_at": "2999-01-01T00:00:00Z",
        "successor": "new",
        "link": None,
    }
    assert ask(server, "GET", "/v1/models/new").json()["deprecation"] is None
    first, second = ask(server, "GET", "/v1/models/new/versions").json()["data"]
    assert (first["deprecation"]["successor"], second["deprecation"]) == ("new@2", None)


def test_the_document_marks_what_ends(server: Server) -> None:
    paths = ask(server, "GET", "/openapi.json").json()["paths"]
    assert paths["/v1/embeddings"]["post"]["deprecated"] is True
    assert "deprecated" not in paths["/v1/chat/completions"]["post"]
