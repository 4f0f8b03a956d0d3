"""Each rival in an environment of its own, in the version that is pinned here, with the same onnxruntime as ours."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

from bench.build import CACHE, Missing

_PINS = {
    "fastapi": ["fastapi==0.165.0", "uvicorn[standard]==0.54.0"],
    "mosec": ["mosec==0.9.8"],
    "litserve": ["litserve==0.2.19"],
    "bentoml": ["bentoml==1.4.40"],
    "mlserver": ["mlserver==1.7.1", "uvloop==0.21.0"],
    "ray": ["ray[serve]==2.60.0"],
}
_INSTALL_S = 900


def ensure_installed(name: str) -> Path:
    """The rival's own Python. Raises: Missing with what pip said."""
    home = CACHE / f"serving-{name}"
    wanted = [*_PINS[name], f"onnxruntime=={version('onnxruntime')}", f"numpy=={version('numpy')}"]
    stamp = home / "installed"
    if not stamp.exists() or stamp.read_text().split() != wanted:
        print(f"installing {name} into .cache/bench/{home.name} …", file=sys.stderr)
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(home)], check=True)
        command = [str(home / "bin" / "pip"), "install", "-q", *wanted]
        done = subprocess.run(command, capture_output=True, text=True, timeout=_INSTALL_S)
        if done.returncode:
            raise Missing(f"{name} could not be installed: {done.stderr.strip()[-500:]}")
        stamp.write_text("\n".join(wanted))
    return home / "bin" / "python"


def package_version(name: str) -> str:
    """The version of a rival as it is pinned."""
    return _PINS[name][0].rpartition("==")[2]


def clean_environment() -> dict[str, str]:
    """Ours without what would lead another Python to our packages."""
    return {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
