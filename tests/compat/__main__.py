"""Run the suites of `suites.py` and compare their failures with docs/compatibility.md.

    python -m tests.compat [NAME …]

Fails when a test fails that the document does not explain, or when one that it explains does not fail any more.
Everything is fetched into .cache/ by pip.
"""

from __future__ import annotations

import fnmatch
import os
import re
import subprocess
import sys
import tarfile
import tempfile
import xml.etree.ElementTree as ElementTree
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from tests.compat.suites import SUITES, Suite
from tests.serving import Server

ROOT = Path(__file__).resolve().parents[2]
_CACHE = ROOT / ".cache" / "compat"
_DOCUMENT = ROOT / "docs" / "compatibility.md"
_ROW = re.compile(r"^\| `([^`]+)` \|", re.MULTILINE)


@dataclass(frozen=True)
class Outcome:
    """What a suite's tests came to; `failed` has their names as pytest prints them."""

    total: int
    skipped: int
    failed: tuple[str, ...]


def main(names: list[str]) -> int:
    good = [_judge(name, _run(SUITES[name])) for name in names or SUITES]
    return 0 if all(good) else 1


def _run(suite: Suite) -> Outcome:
    """Fetch the suite, start a server for it, and run it."""
    source, python = _prepare(suite)
    rows = "".join(f'[[models]]\nid = "{model}"\nbackend = "sandbox"\n' for model in suite.models)
    with tempfile.TemporaryDirectory() as directory:
        report = Path(directory) / "report.xml"
        with Server(Path(directory), config=f"default_models = false\n{rows}") as server:
            _insert_key(source, suite.placeholder, server.credentials["api_key"])
            subprocess.run(
                [python, "-m", "pytest", "-o", "addopts=", *suite.options, "-q", f"--junitxml={report}", *suite.files],
                cwd=source,
                env=os.environ | {"TEST_API_BASE_URL": server.base_url + suite.address},
                check=False,
            )
        return _read(report)


def _prepare(suite: Suite) -> tuple[Path, Path]:
    """The suite's unpacked source, fresh, and the Python that has what it needs."""
    wanted = f"{suite.package}=={version(suite.package)}"
    home = _CACHE / wanted.replace("==", "-")
    python = home / "venv" / "bin" / "python"
    if not (home / "ready").exists():
        print(f"compat: fetching {wanted} and what its tests need")
        subprocess.run([sys.executable, "-m", "venv", home / "venv"], check=True)
        pip = [python, "-m", "pip", "--disable-pip-version-check", "--quiet"]
        subprocess.run([*pip, "install", wanted, *suite.requirements], check=True)
        fetch = ["download", "--no-deps", "--no-binary", suite.package, "--dest", home, wanted]
        subprocess.run([*pip, *fetch], check=True)
        (home / "ready").touch()
    (archive,) = home.glob("*.tar.gz")
    with tarfile.open(archive) as packed:
        packed.extractall(home, filter="data")
    return home / archive.name.removesuffix(".tar.gz"), python


def _insert_key(source: Path, placeholder: str, key: str) -> None:
    """The suite takes its address from the environment, but not its key."""
    for path in (source / "tests").rglob("*.py"):
        text = path.read_text()
        if placeholder in text:
            path.write_text(text.replace(placeholder, key))


def _read(report: Path) -> Outcome:
    cases = list(ElementTree.parse(report).getroot().iter("testcase"))
    failed = [case for case in cases if case.find("failure") is not None or case.find("error") is not None]
    skipped = sum(case.find("skipped") is not None for case in cases)
    names = sorted({f"{case.get('classname', '')}.{case.get('name')}".removeprefix("tests.") for case in failed})
    return Outcome(len(cases), skipped, tuple(names))


def _judge(name: str, outcome: Outcome) -> bool:
    """Print what came of the suite, and what the document does not know or no longer has a reason for."""
    known = _explained(name)
    unknown = [test for test in outcome.failed if not any(fnmatch.fnmatchcase(test, pattern) for pattern in known)]
    healed = [pattern for pattern in known if not fnmatch.filter(outcome.failed, pattern)]
    passed = outcome.total - outcome.skipped - len(outcome.failed)
    print(f"compat: {name}: {passed} passed, {len(outcome.failed)} failed, {outcome.skipped} skipped by the suite")
    for test in unknown:
        print(f"compat: {name}: {test} fails; mend it, or say why in {_DOCUMENT.name}")
    for pattern in healed:
        print(f"compat: {name}: {pattern} does not fail any more; take it out of {_DOCUMENT.name}")
    return not unknown and not healed and outcome.total > 0


def _explained(name: str) -> list[str]:
    """The tests whose failures the document gives a reason for, as patterns."""
    _, _, section = _DOCUMENT.read_text().partition(f"\n## {name}\n")
    return _ROW.findall(section.partition("\n## ")[0])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
