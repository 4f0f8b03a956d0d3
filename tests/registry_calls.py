"""The registry as operators and callers use it, for tests."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import httpx

from tests.serving import Server
from tests.waiting import wait_until

ROW = [6.3, 2.8, 5.1, 1.5]
FLOWERS = ("setosa", "versicolor", "virginica")


def iris(version: str) -> Path:
    """The file of one of the two real iris models that set-up makes."""
    return Path(sys.prefix) / "share" / "modelport" / "models" / f"iris-{version}.onnx"


class Operator:
    """Somebody with the operator's key of a server that runs."""

    def __init__(self, server: Server, *, key: str = "") -> None:
        self.server = server
        headers = {"Authorization": f"Bearer {key or server.credentials['api_key']}"}
        self.http = httpx.Client(base_url=server.base_url, headers=headers, timeout=60)

    def __enter__(self) -> Operator:
        return self

    def __exit__(self, *_: object) -> None:
        self.http.close()

    def add(self, model: str, source: Path | str, **body: Any) -> httpx.Response:
        return self.http.post("/v1/admin/models", json={"id": model, "source": str(source), **body})

    async def added(self, model: str, source: Path | str, **body: Any) -> dict[str, Any]:
        """Add a version, and wait until it can answer."""
        answer = self.add(model, source, **body)
        assert answer.status_code == 201, answer.text
        version: dict[str, Any] = answer.json()
        await wait_until(
            lambda: self.version(model, version["id"])["status"] == "ready", f"{model}@{version['id']} is ready"
        )
        return version

    def version(self, model: str, version: str) -> dict[str, Any]:
        return _content(self.http.get(f"/v1/admin/models/{model}/versions/{version}"))

    def model(self, model: str) -> dict[str, Any]:
        return _content(self.http.get(f"/v1/admin/models/{model}"))

    def move(self, model: str, alias: str, version: str, **body: Any) -> httpx.Response:
        return self.http.put(f"/v1/admin/models/{model}/aliases/{alias}", json={"version": version, **body})

    def roll_back(self, model: str, alias: str, **body: Any) -> httpx.Response:
        return self.http.post(f"/v1/admin/models/{model}/aliases/{alias}/rollback", json=body)

    def predict(self, model: str, **body: Any) -> httpx.Response:
        return self.http.post("/v1/predict", json={"model": model, "inputs": [ROW], **body})

    def served(self, model: str, **body: Any) -> str:
        """The version that answers."""
        version: str = _content(self.predict(model, **body))["model_version"]
        return version


def _content(answer: httpx.Response) -> dict[str, Any]:
    assert answer.status_code == 200, answer.text
    content: dict[str, Any] = answer.json()
    return content


def told_by(answer: Mapping[str, Any]) -> tuple[float, ...]:
    """What of a prediction shows which file made it."""
    return tuple(answer["predictions"][0]["probabilities"].values())
