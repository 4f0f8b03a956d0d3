"""A Chromium for the browser tests: the machine's own, or Debian's package, installed without a question."""

from __future__ import annotations

import os
import shutil
import subprocess

_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


class BrowserMissing(RuntimeError):
    """There is no Chromium and none could be installed."""


def chromium() -> str:
    """The path of a Chromium. Raises: BrowserMissing."""
    found = _find()
    if found is None and shutil.which("apt-get"):
        _install()
        found = _find()
    if found is None:
        raise BrowserMissing("the browser tests need Chromium: apt-get install chromium")
    return found


def arguments() -> list[str]:
    """Flags for a headless run; the sandbox needs rights that root in a container lacks."""
    flags = [
        "--headless",
        "--disable-gpu",
        "--disable-dev-shm-usage",
        "--no-first-run",
        "--disable-quic",
        "--disable-background-networking",
    ]
    return [*flags, "--no-sandbox"] if os.getuid() == 0 else flags


def _find() -> str | None:
    return next((path for name in _NAMES if (path := shutil.which(name))), None)


def _install() -> None:
    prefix = [] if os.getuid() == 0 else ["sudo", "--non-interactive"]
    environment = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
    install = [*prefix, "apt-get", "install", "--yes", "--no-install-recommends", "chromium"]
    if subprocess.run(install, env=environment, capture_output=True, check=False).returncode != 0:
        # The package lists of a fresh machine may be empty or old.
        subprocess.run([*prefix, "apt-get", "update"], env=environment, capture_output=True, check=False)
        subprocess.run(install, env=environment, capture_output=True, check=False)
