"""`modelport settings`."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import typer

from modelport.cli.configuration import ConfigFile, read
from modelport.cli.output import AsJson, print_json

_SECRET_NAME = re.compile(r"authorization|api[-_]?key$|password|secret|token$", re.IGNORECASE)
_URL_PASSWORD = re.compile(r"(?<=://)([^/@\s]*?):([^/@\s]+)@")
_MASK = "***"


def settings(config: ConfigFile = None, json_: AsJson = False) -> None:
    """Print every setting in force and where it comes from; secrets are masked.

    Example: MODELPORT_SERVER__WORKERS=2 modelport settings --config modelport.toml
    """
    tree = masked(read(config).model_dump(mode="json"))
    if json_:
        print_json(tree)
        return
    from_file = _paths_in_file(config)
    for path, value in _leaves(tree, ()):
        origin = _origin(path, from_file)
        typer.echo(f"{'.'.join(path)} = {json.dumps(value, ensure_ascii=False)}{'  # ' + origin if origin else ''}")


def masked(value: Any, *, name: str = "") -> Any:
    """The same tree without passwords in addresses and without values whose name says that they are secret."""
    if isinstance(value, dict):
        return {key: masked(inner, name=key) for key, inner in value.items()}
    if isinstance(value, list):
        return [masked(inner, name=name) for inner in value]
    if isinstance(value, str) and value:
        return _MASK if _SECRET_NAME.search(name) else _URL_PASSWORD.sub(rf"\1:{_MASK}@", value)
    return value


def _leaves(value: Any, path: tuple[str, ...]) -> list[tuple[tuple[str, ...], Any]]:
    if isinstance(value, dict) and len(path) < 2 and value:
        return [leaf for key, inner in value.items() for leaf in _leaves(inner, (*path, key))]
    return [(path, value)]


def _origin(path: tuple[str, ...], from_file: set[tuple[str, ...]]) -> str:
    names = {"MODELPORT_" + "__".join(path[:depth]).upper() for depth in range(1, len(path) + 1)}
    set_here = [name for name in os.environ if name.upper() in names]
    if set_here:
        return f"from {set_here[0]}"
    return "from the file" if path in from_file or path[:1] in from_file else ""


def _paths_in_file(config: Path | None) -> set[tuple[str, ...]]:
    """The paths that the file sets: whole lists at the first level, single settings at the second."""
    if config is None:
        return set()
    import tomllib

    document = tomllib.loads(config.read_text())
    paths: set[tuple[str, ...]] = set()
    for key, value in document.items():
        paths |= {(key, inner) for inner in value} if isinstance(value, dict) else {(key,)}
    return paths
