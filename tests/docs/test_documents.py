"""The documents keep their word: generated ones are fresh, links lead somewhere, settings in examples are valid."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from modelport.settings import load

ROOT = Path(__file__).resolve().parents[2]
_LINK = re.compile(r"\[[^\]]*\]\(([^)#\s]+)(?:#[^)]*)?\)")
_FENCE = re.compile(r"^```(\w+)\n(.*?)^```", re.MULTILINE | re.DOTALL)
_CONTINUES = re.compile(r"\[{1,2}\w+\.")
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])


def test_generated_documents_are_fresh() -> None:
    done = subprocess.run(
        [sys.executable, "tools/generate.py", "--check"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_relative_link_leads_to_a_file(page: Path) -> None:
    links = [link for link in _LINK.findall(page.read_text()) if "://" not in link and not link.startswith("/")]
    assert [link for link in links if not (page.parent / link).exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_example_of_a_configuration_is_valid(page: Path, tmp_path: Path) -> None:
    before = ""
    for language, text in _FENCE.findall(page.read_text()):
        if language == "toml":
            # A block that opens with a table of a table, such as [models.options], goes on from the one before.
            before = before + text if _CONTINUES.match(text) else text
            file = tmp_path / "modelport.toml"
            file.write_text(before)
            load(file)


def test_the_readme_says_the_two_commands() -> None:
    text = (ROOT / "README.md").read_text()
    assert "make run" in text
    assert "make test" in text
    assert "make test" in (ROOT / ".ci" / "run").read_text()
