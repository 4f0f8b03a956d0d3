"""The tour's platform: `modelport serve` with the default models, and the official SDK pointed at it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import httpx
import pytest
from openai import OpenAI

from tests.serving import Server


@dataclass(frozen=True)
class Tour:
    """What a newcomer has after `make run`: an address, a key, and two clients that use them."""

    server: Server
    key: str
    sdk: OpenAI
    http: httpx.Client

    def sdk_with(self, key: str) -> OpenAI:
        """The SDK with another key; it does not retry, so that refusals show."""
        return self.sdk.with_options(api_key=key)


@pytest.fixture(scope="session")
def tour(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tour]:
    with Server(tmp_path_factory.mktemp("tour")) as server:
        key = server.credentials["api_key"]
        headers = {"Authorization": f"Bearer {key}"}
        with (
            OpenAI(base_url=f"{server.base_url}/v1", api_key=key, max_retries=0) as sdk,
            httpx.Client(base_url=server.base_url, headers=headers, timeout=60) as http,
        ):
            yield Tour(server, key, sdk, http)
