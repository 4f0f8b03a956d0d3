"""The OpenAPI document is valid, complete and has an example for every operation."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from openapi_spec_validator import validate

from tests.serving import Server

CONFIG = """
default_models = false
[[models]]
id = "sandbox"
backend = "sandbox"
"""


@pytest.fixture(scope="module")
def document(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    with Server(tmp_path_factory.mktemp("openapi"), config=CONFIG) as server:
        yield server.get("/openapi.json")[1]


def test_it_is_valid_openapi_3_1(document: dict[str, Any]) -> None:
    assert document["openapi"].startswith("3.1")
    validate(document)


def test_title_version_contact_licence_terms_and_servers_are_there(document: dict[str, Any]) -> None:
    assert {"title", "version", "contact", "license", "termsOfService", "description"} <= set(document["info"])
    assert document["servers"]


def test_every_operation_is_described_with_examples_and_errors(document: dict[str, Any]) -> None:
    ids: list[str] = []
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            where = f"{method} {path}"
            assert operation["summary"], where
            assert operation["description"], where
            assert operation["tags"], where
            ids.append(operation["operationId"])
            for content in operation.get("requestBody", {}).get("content", {}).values():
                assert "example" in content or "examples" in content, where
            for status, response in operation["responses"].items():
                for content in response.get("content", {}).values():
                    assert "example" in content or "examples" in content, f"{where} {status}"
    assert len(ids) == len(set(ids))
    assert {"create_chat_completion", "create_prediction", "list_models", "create_api_key", "get_usage"} <= set(ids)
