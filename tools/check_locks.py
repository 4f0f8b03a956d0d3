"""The locks agree with pyproject.toml and with each other, name every package by hash, and hold no address."""

from __future__ import annotations

import re
import sys
import tomllib
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
_ROW = re.compile(r"^([a-z0-9.-]+)==([^\s;\\]+)", re.MULTILINE)
_REQUIREMENT = re.compile(r"^([A-Za-z0-9._-]+)(?:\[[^\]]*\])?\s*(?:(>=|==)\s*([0-9][^\s;,]*))?")
_ADDRESS = re.compile(r"https?://|--index-url|--extra-index-url|--find-links|file://")


def main() -> int:
    """Print every disagreement; 1 when there is one."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    groups = project["dependency-groups"]
    run_needs = [
        *project["project"]["dependencies"],
        *project["project"]["optional-dependencies"]["local"],
        *project["project"]["optional-dependencies"]["prepare"],
        *groups["assets"],
        *groups["build"],
    ]
    run, test = _read("run.lock"), _read("test.lock")
    problems = [*_unmet(run_needs, run, "run.lock"), *_unmet([*groups["test"], *groups["check"]], test, "test.lock")]
    problems += [
        f"{name} is {sorted(run[name])} in run.lock and {sorted(test[name])} in test.lock"
        for name in run.keys() & test.keys()
        if run[name] != test[name]
    ]
    for name in ("run.lock", "test.lock"):
        problems += _form(name)
    problems += _readme()
    for problem in problems:
        print(f"{problem}")
    if problems:
        print("`make lock` makes the locks anew.")
    return 1 if problems else 0


def _read(name: str) -> dict[str, set[str]]:
    rows: dict[str, set[str]] = {}
    for package, version in _ROW.findall((ROOT / "requirements" / name).read_text()):
        rows.setdefault(package, set()).add(version)
    return rows


def _unmet(needs: list[Any], lock: dict[str, set[str]], file: str) -> list[str]:
    problems = []
    for need in needs:
        match = _REQUIREMENT.match(str(need))
        if match is None:
            problems.append(f"pyproject.toml: {need!r} is no requirement that this check can read")
            continue
        package = re.sub(r"[-_.]+", "-", match[1]).lower()
        versions = lock.get(package)
        if versions is None:
            problems.append(f"{package} is needed by pyproject.toml and missing from requirements/{file}")
        elif match[3] and any(_number(version) < _number(match[3]) for version in versions):
            problems.append(
                f"{package} {sorted(versions)} in requirements/{file} is older than pyproject.toml's {need}"
            )
    return problems


def _number(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version))


def _form(name: str) -> list[str]:
    text = (ROOT / "requirements" / name).read_text()
    problems = [f"requirements/{name} holds an address: {found!r}" for found in set(_ADDRESS.findall(text))]
    blocks = re.split(r"\n(?=\S)", text)
    problems += [
        f"requirements/{name}: {match[1]} has no hash"
        for block in blocks
        if (match := _ROW.match(block)) and "--hash=sha256:" not in block
    ]
    return problems


def _readme() -> list[str]:
    text = (ROOT / "README.md").read_text()
    return [f"README.md does not say `{command}`" for command in ("make run", "make test") if command not in text]


if __name__ == "__main__":
    sys.exit(main())
