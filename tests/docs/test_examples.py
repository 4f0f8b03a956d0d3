"""What README.md and the guides tell people to type is typed here, against a running platform with real models."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.serving import Server

ROOT = Path(__file__).resolve().parents[2]
_FENCE = re.compile(r"^```(\w+)\n(.*?)^```", re.MULTILINE | re.DOTALL)
_ADDRESS = "http://127.0.0.1:8000"
_PAGES = [ROOT / "README.md", *sorted((ROOT / "docs" / "guides").glob("*.md"))]


def _examples(language: str) -> list[tuple[str, str]]:
    return [
        (f"{page.stem}-{number}", text)
        for page in _PAGES
        for number, (found, text) in enumerate(_FENCE.findall(page.read_text()))
        if found == language and (language != "sh" or "curl" in text)
    ]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The platform as `make run` starts it: with every default model."""
    server = Server(tmp_path_factory.mktemp("examples")).start()
    yield server
    server.kill()


def _environment(server: Server) -> dict[str, str]:
    key = server.credentials["api_key"]
    keys = {"MODELPORT_API_KEY": key, "OPENAI_API_KEY": key, "KEY": key, "BASE": server.base_url}
    return {name: value for name, value in os.environ.items() if "proxy" not in name.lower()} | keys


@pytest.mark.parametrize(("name", "text"), _examples("sh"))
def test_each_curl_gets_an_answer(server: Server, name: str, text: str) -> None:
    script = 'set -e\ncurl() { command curl --fail-with-body --silent --show-error "$@"; }\n' + text
    done = subprocess.run(
        ["bash", "-c", script.replace(_ADDRESS, server.base_url)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env=_environment(server),
    )
    assert done.returncode == 0, f"{name}: {done.stdout}{done.stderr}"
    assert any(word in done.stdout for word in ('"choices"', "data:", '"object"'))


@pytest.mark.parametrize(("name", "text"), _examples("python"))
def test_each_python_example_runs(server: Server, name: str, text: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", text.replace(_ADDRESS, server.base_url)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env=_environment(server),
    )
    assert done.returncode == 0, f"{name}: {done.stderr}"
    assert done.stdout.strip()


@pytest.mark.parametrize("example", sorted((ROOT / "examples").glob("*.py")), ids=lambda path: path.name)
def test_each_example_program_runs(server: Server, example: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(example)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env=_environment(server) | {"OPENAI_BASE_URL": f"{server.base_url}/v1", "MODELPORT_BASE_URL": server.base_url},
    )
    assert done.returncode == 0, f"{example.name}: {done.stderr}"
    assert done.stdout.strip()
