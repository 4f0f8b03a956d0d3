"""What talks to upstreams is tested on both event loops: uvloop serves in production, asyncio where there is none."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping

import pytest
import uvloop

_UPSTREAM_TESTS = ("test_transport", "test_openai_backend", "test_anthropic_backend", "test_gemini_backend")


def pytest_asyncio_loop_factories(
    config: pytest.Config, item: pytest.Item
) -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    """Both for the tests of upstreams; asyncio's, which is the default anyway, for all others."""
    if item.path.name.startswith(_UPSTREAM_TESTS):
        return {"asyncio": asyncio.SelectorEventLoop, "uvloop": uvloop.new_event_loop}
    return {"asyncio": asyncio.new_event_loop}
