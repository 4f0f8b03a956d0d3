"""Every check that needs no running platform, the same here and in CI: a line each, exit code 1 if any fails."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
_BIN = Path(sys.executable).parent
_TREES = ["src", "tests", "tools", "bench", "examples"]

_COMMANDS: dict[str, list[str]] = {
    "types": [str(_BIN / "mypy"), "--strict", "src"],
    "format": [str(_BIN / "ruff"), "format", "--check", "--quiet", *_TREES],
    "lint": [str(_BIN / "ruff"), "check", "--quiet", *_TREES],
    "layers": [str(_BIN / "lint-imports")],
    "house rules": [sys.executable, "tools/check_rules.py"],
    "locks": [sys.executable, "tools/check_locks.py"],
    "generated files": [sys.executable, "tools/generate.py", "--check"],
}


def main() -> int:
    """Run all checks, as many at once as there are cores, and print those that fail in full."""
    started_s = time.monotonic()
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        passed = list(pool.map(_run, _COMMANDS.items()))
    failed = passed.count(False)
    print(f"check: {len(passed) - failed} passed, {failed} failed, in {time.monotonic() - started_s:.1f} s")
    return 1 if failed else 0


def _run(check: tuple[str, list[str]]) -> bool:
    name, command = check
    started_s = time.monotonic()
    # import-linter draws a banner; the plain output is what belongs in a log.
    environment = os.environ | {"NO_COLOR": "1", "PYTHONPATH": str(ROOT / "src")}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    took = f"{time.monotonic() - started_s:.1f} s"
    if done.returncode == 0:
        print(f"check: {name}: ok ({took})", flush=True)
        return True
    print(f"check: {name}: FAILED ({took})\n{done.stdout}{done.stderr}", flush=True)
    return False


if __name__ == "__main__":
    sys.exit(main())
