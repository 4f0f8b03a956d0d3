"""Builds the load generator and the fake upstream, and says what the machine lacks."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CACHE = ROOT / ".cache" / "bench"
_COMPILE_S = 120


class Missing(Exception):
    """Something the bench needs is not on this machine; the message says what, and how to get it."""


@dataclass(frozen=True, slots=True)
class Tools:
    """The two compiled programs; the opening comment of each source describes its options."""

    upstream: Path
    load: Path


def build_tools() -> Tools:
    """Both programs, compiled anew only when their source changed. Raises: Missing without a C compiler."""
    return Tools(upstream=_compile("upstream"), load=_compile("load"))


def _compile(name: str) -> Path:
    source = ROOT / "bench" / f"{name}.c"
    digest = hashlib.sha256(source.read_bytes()).hexdigest()[:12]
    program = CACHE / f"{name}-{digest}"
    if program.exists():
        return program
    compiler = find_program("gcc", "cc", package="gcc")
    CACHE.mkdir(parents=True, exist_ok=True)
    # Written under another name first: two benches that start at once must not run half a program.
    unfinished = program.with_suffix(f".{os.getpid()}")
    command = [compiler, "-O2", "-Wall", "-Wextra", "-o", str(unfinished), str(source)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=_COMPILE_S)
    if done.returncode:
        raise Missing(f"{compiler} could not compile bench/{name}.c (is libc6-dev installed?):\n{done.stderr}")
    unfinished.replace(program)
    return program


def find_program(*names: str, package: str) -> str:
    """The path of the first of `names` that is there; root on Debian gets `package` installed where none is.

    Raises: Missing.
    """
    for attempt in ("as it is", "installed"):
        for name in names:
            found = shutil.which(name) or shutil.which(name, path="/usr/sbin:/usr/local/sbin")
            if found:
                return found
        if attempt == "as it is" and not _install_package(package):
            break
    raise Missing(f"{names[0]} is missing: apt-get install {package}")


def _install_package(package: str) -> bool:
    if os.geteuid() != 0 or not shutil.which("apt-get"):
        return False
    print(f"installing {package} …", file=sys.stderr)
    for arguments in (["update", "-q"], ["install", "-q", "-y", "--no-install-recommends", package]):
        subprocess.run(["apt-get", *arguments], stdout=subprocess.DEVNULL, check=False)
    return True
