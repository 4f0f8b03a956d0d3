"""Which suites there are: where each comes from, what it needs, and what of it concerns us."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Suite:
    """One SDK's suite, out of its source distribution of the version that our own tests are locked to.

    `files` are those of resources that we serve. `placeholder` is the API key that the suite has written into it.
    `models` are served by the sandbox under the names that the suite asks for. `options` are pytest's.
    """

    package: str
    requirements: tuple[str, ...]
    files: tuple[str, ...]
    placeholder: str
    models: tuple[str, ...]
    address: str = ""
    options: tuple[str, ...] = ()


SUITES: dict[str, Suite] = {
    "anthropic": Suite(
        package="anthropic",
        requirements=("aiohttp", "http-snapshot[httpx]", "inline-snapshot", "pytest", "pytest-asyncio", "respx"),
        files=(
            "tests/api_resources/test_messages.py",
            "tests/api_resources/beta/test_messages.py",
            "tests/api_resources/test_models.py",
        ),
        placeholder="my-anthropic-api-key",
        # The last ones are those that the SDK warns about; its test calls each of them.
        models=(
            "claude-opus-5-5",
            "model_id",
            "claude-mythos-preview",
            "claude-opus-4-5",
            "claude-opus-4-5-20251101",
            "claude-sonnet-4-5",
            "claude-sonnet-4-5-20250929",
        ),
        options=("-p", "tests._alias_httpx"),
    ),
    "openai": Suite(
        package="openai",
        requirements=("aiohttp", "httpx-aiohttp", "pytest", "pytest-asyncio", "rich"),
        files=(
            "tests/api_resources/chat",
            "tests/api_resources/test_completions.py",
            "tests/api_resources/test_embeddings.py",
            "tests/api_resources/test_models.py",
            "tests/api_resources/test_responses.py",
            "tests/api_resources/responses",
        ),
        placeholder="My API Key",
        models=("gpt-6-astra", "gpt-4o-mini", "gpt-3.5-turbo-instruct", "model", "text-embedding-3-small"),
        address="/v1",
    ),
}
