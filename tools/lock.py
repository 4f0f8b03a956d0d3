"""Resolve the requirements anew: writes requirements/run.lock and requirements/test.lock.

Made with uv, which resolves once for every Python and system that the platform supports; it lives in .cache/ and is
used for nothing else. The package index is the one that the user's pip is set to, and is written nowhere.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
_LOCKS = ROOT / "requirements"
_UV_VENV = ROOT / ".cache" / "uv"
# What pip's configuration calls it, and the variable in which uv takes the same. Extra indexes are left out: what
# they carry may be built on the spot, with hashes that hold nowhere else.
_INDEX_VARIABLES = {"index-url": "UV_DEFAULT_INDEX", "cert": "SSL_CERT_FILE"}


def main(arguments: list[str]) -> None:
    """Write both locks. Further arguments go to uv: `--upgrade`, `--upgrade-package NAME`."""
    uv = _uv()
    run, test = _LOCKS / "run.lock", _LOCKS / "test.lock"
    extras = ["--extra", "local", "--extra", "prepare"]
    _compile(uv, run, ["pyproject.toml", *extras, "--group", "assets", "--group", "build", *arguments])
    # The tests run against exactly what is served, so what both need has one version.
    _compile(uv, test, ["--group", "test", "--group", "check", "--constraints", str(run), *arguments])


def _compile(uv: Path, lock: Path, arguments: list[str]) -> None:
    print(f"lock: resolving {lock.relative_to(ROOT)}")
    command = [str(uv), "pip", "compile", "--output-file", str(lock), "--quiet"]
    command += ["--universal", "--python-version", "3.11", "--generate-hashes", "--no-annotate"]
    command += ["--overrides", str(_LOCKS / "overrides.txt"), "--custom-compile-command", "make lock"]
    subprocess.run([*command, *arguments], cwd=ROOT, env=os.environ | _indexes(), check=True)


def _uv() -> Path:
    uv = _UV_VENV / "bin" / "uv"
    if not uv.exists():
        print("lock: fetching uv into .cache/")
        subprocess.run([sys.executable, "-m", "venv", str(_UV_VENV)], check=True)
        subprocess.run([str(_UV_VENV / "bin" / "pip"), "install", "--quiet", "uv"], check=True)
    return uv


def _indexes() -> dict[str, str]:
    """The user's pip settings in uv's words: what `pip config list` says, the environment included."""
    answer = subprocess.run([sys.executable, "-m", "pip", "config", "list"], capture_output=True, text=True, check=True)
    variables: dict[str, str] = {}
    for line in answer.stdout.splitlines():
        name, _, value = line.partition("=")
        variable = _INDEX_VARIABLES.get(name.rpartition(".")[2])
        if variable:
            variables[variable] = value.strip("'\"")
    return variables


if __name__ == "__main__":
    main(sys.argv[1:])
