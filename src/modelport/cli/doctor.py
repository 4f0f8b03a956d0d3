"""`modelport doctor`: looks at everything that serving needs and says what to do about what is missing."""

from __future__ import annotations

import asyncio
import importlib.util
import shutil
import socket
import stat
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from modelport.cli.configuration import ConfigFile, read
from modelport.cli.output import AsJson, print_json

if TYPE_CHECKING:
    from modelport.settings import Settings

_ENGINE_PACKAGES = {"llamacpp": ("xllamacpp",), "onnx": ("onnxruntime", "numpy", "PIL", "tokenizers")}
# The database, the journal and the log of a busy day; below it a server stops in the middle of one.
_DISK_BYTES = 1_000_000_000
_ANSWER_S = 5.0


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at. `detail` says what to do where it isn't ok."""

    what: str
    result: Literal["ok", "note", "failed"]
    detail: str


def doctor(
    config: ConfigFile = None,
    data_dir: Annotated[Path | None, typer.Option(help="The data directory to look at.")] = None,
    json_: AsJson = False,
) -> None:
    """Check Python, packages, models, port, database, shared state and disk; exit code 1 if something is wrong.

    Example: modelport doctor --config modelport.toml
    """
    settings = read(config, **({"data_dir": data_dir} if data_dir else {}))
    settings = settings.model_copy(update={"data_dir": settings.data_dir.expanduser().resolve()})
    findings = []
    for finding in _examine(settings):
        findings.append(finding)
        if not json_:
            typer.echo(f"{finding.result:6} {finding.what}: {finding.detail}")
    if json_:
        print_json([asdict(finding) for finding in findings])
    if any(finding.result == "failed" for finding in findings):
        raise typer.Exit(1)


def _examine(settings: Settings) -> Iterator[Finding]:
    yield Finding("Python", "ok", ".".join(map(str, sys.version_info[:3])))
    yield _data_dir(settings)
    yield _disk(settings)
    yield _port(settings)
    yield asyncio.run(_database(settings))
    yield asyncio.run(_state(settings))
    yield from _models(settings)


def _data_dir(settings: Settings) -> Finding:
    path = settings.data_dir
    if not path.exists():
        return Finding("data directory", "ok", f"{path} will be made by the first start")
    mode = stat.S_IMODE(path.stat().st_mode)
    if mode & 0o077:
        return Finding("data directory", "failed", f"{path} can be read by others (mode {mode:o}): chmod 700 {path}")
    return Finding("data directory", "ok", str(path))


def _disk(settings: Settings) -> Finding:
    place = next(place for place in (settings.data_dir, *settings.data_dir.parents) if place.exists())
    free = shutil.disk_usage(place).free
    if free < _DISK_BYTES:
        return Finding("disk", "failed", f"only {free / 1e6:.0f} MB are free at {place}: make room, or move --data-dir")
    return Finding("disk", "ok", f"{free / 1e9:.0f} GB free at {place}")


def _port(settings: Settings) -> Finding:
    from modelport.supervisor.listener import listen
    from modelport.supervisor.refusal import StartRefused

    host, port = settings.server.host, settings.server.port
    try:
        listen(host, port).close()
    except StartRefused as refusal:
        if _answers(host, port):
            return Finding("port", "note", f"{host}:{port} is in use: a server is running there")
        return Finding("port", "failed", str(refusal))
    return Finding("port", "ok", f"{host}:{port} is free")


def _answers(host: str, port: int) -> bool:
    try:
        with socket.create_connection((host, port), timeout=_ANSWER_S):
            return True
    except OSError:
        return False


async def _database(settings: Settings) -> Finding:
    from modelport.db.engine import open_database
    from modelport.db.migrate import HEAD, DatabaseTooNew, revision_of
    from modelport.errors import Unavailable

    if not settings.database.url and not (settings.data_dir / "modelport.db").exists():
        return Finding("database", "ok", "a SQLite file will be made by the first start")
    try:
        db = open_database(settings.database.url, data_dir=settings.data_dir, pool_size=1)
        try:
            revision = await revision_of(db)
        finally:
            await db.close()
    except (ValueError, DatabaseTooNew) as error:
        return Finding("database", "failed", str(error))
    except Unavailable as error:
        return Finding("database", "failed", f"can't be reached: {error.internal or error.message}")
    behind = "" if revision == HEAD else f", to be migrated to {HEAD} (`modelport migrate`, or the next start)"
    return Finding("database", "ok", f"reached, at {revision or 'nothing yet'}{behind}")


async def _state(settings: Settings) -> Finding:
    from modelport.errors import StateUnavailable
    from modelport.kit.clock import SystemClock
    from modelport.state.open import open_state

    if not settings.state.url.startswith(("redis", "valkey")):
        return Finding("shared state", "ok", f"on this machine ({settings.state.url})")
    state = open_state(
        settings.state.url,
        data_dir=settings.data_dir,
        workers=settings.server.workers,
        namespace=settings.state.namespace,
        clock=SystemClock(),
    )
    try:
        await asyncio.wait_for(state.start(), _ANSWER_S)
        await asyncio.wait_for(state.ping(), _ANSWER_S)
    except (StateUnavailable, TimeoutError, OSError) as error:
        return Finding("shared state", "failed", f"Redis can't be reached ({error}): start it, or change state.url")
    finally:
        await state.close()
    return Finding("shared state", "ok", "Redis answers")


def _models(settings: Settings) -> Iterator[Finding]:
    from modelport.catalog.configured import all_models
    from modelport.catalog.sources import Fetcher, SourceError, is_remote

    fetcher = Fetcher(settings.data_dir / "models")
    for row in all_models(settings):
        missing = [
            name for name in _ENGINE_PACKAGES.get(row.backend or "", ()) if importlib.util.find_spec(name) is None
        ]
        if missing:
            advice = "pip install 'modelport[local]'"
            yield Finding(f"model {row.id}", "failed", f"needs {', '.join(missing)}: {advice}")
        elif row.backend in _ENGINE_PACKAGES:
            for version in row.all_versions():
                what = f"model {row.id}@{version.version}"
                if is_remote(version.source):
                    yield Finding(what, "note", f"is fetched from {version.source} when it is not there yet")
                    continue
                try:
                    path = fetcher.fetch(version.source, sha256=version.sha256)
                except SourceError as error:
                    yield Finding(what, "failed", str(error))
                else:
                    yield Finding(what, "ok", f"{path}{', SHA-256 as pinned' if version.sha256 else ''}")
