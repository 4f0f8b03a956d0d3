"""`modelport models add, alias, rollback, remove, deprecate`: models that change while the server runs."""

from __future__ import annotations

import hashlib
import json
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any
from urllib.parse import quote

import typer

from modelport.cli.client import DEFAULT_DATA_DIR, ApiKey, BaseUrl, Client, DataDir
from modelport.cli.output import AsJson, Failure, print_json
from modelport.supervisor.terminal import Terminal

if TYPE_CHECKING:
    from modelport.catalog.imports import Found

_ROOT = "/v1/admin/models"
_LOOK_S = 0.25
_CHUNK_BYTES = 1 << 20
_REMOTE = ("hf:", "https:", "http:", "package:", "prepared:")
ModelName = Annotated[str, typer.Argument(help="A model's id.", metavar="MODEL")]


def add(
    source: Annotated[
        str, typer.Argument(help="A file, hf:OWNER/REPO/FILE, https://…, or a folder in Triton's or MLflow's layout.")
    ],
    id_: Annotated[str | None, typer.Option("--id", help="The model's id; the file's or folder's name.")] = None,
    version: Annotated[str | None, typer.Option(help="Its name; the next number.")] = None,
    kind: Annotated[str | None, typer.Option(help="chat, embedding, image or tabular; needed for a new model.")] = None,
    alias: Annotated[list[str] | None, typer.Option(help="Leads to it once it can answer (again for more).")] = None,
    option: Annotated[
        list[str] | None, typer.Option(help="One of the backend's, as NAME=JSON (again for more).")
    ] = None,
    sha256: Annotated[str | None, typer.Option(help="What the file's SHA-256 must be.")] = None,
    wait: Annotated[bool, typer.Option(help="Return when it can answer.")] = True,
    base_url: BaseUrl = None,
    api_key: ApiKey = None,
    data_dir: DataDir = DEFAULT_DATA_DIR,
    json_: AsJson = False,
) -> None:
    """Add a version of a model, or a new model, while the server runs.

    Example: modelport models add wine-3.onnx --id wine --alias latest
    """
    client = Client.from_options(base_url, api_key, data_dir)
    asked = {"id": id_, "version": version, "kind": kind, "sha256": sha256}
    given = {name: value for name, value in asked.items() if value is not None}
    bodies = [found | given for found in _found(source)]
    if len(bodies) > 1 and (version or sha256):
        raise Failure("the folder has several versions: --version and --sha256 are for one", exit_code=2)
    added = []
    for number, body in enumerate(bodies):
        body["options"] = body.get("options", {}) | _options(option or [])
        # Of several versions the last one, which is the newest, is what the aliases are to mean.
        body["aliases"] = (alias or []) if number == len(bodies) - 1 else []
        added.append(_add(client, body, wait=wait, quiet=json_))
    if json_:
        print_json(added if len(added) > 1 else added[0])


def alias(
    model: ModelName,
    name: Annotated[str, typer.Argument(help="The alias: latest, stable or one of your own.", metavar="ALIAS")],
    version: Annotated[str | None, typer.Argument(help="What it is to mean; nothing: what it means is shown.")] = None,
    expected: Annotated[str | None, typer.Option(help="Only if it means this version now.")] = None,
    drop: Annotated[bool, typer.Option("--drop", help="Have it mean what the configuration says again.")] = False,
    base_url: BaseUrl = None,
    api_key: ApiKey = None,
    data_dir: DataDir = DEFAULT_DATA_DIR,
    json_: AsJson = False,
) -> None:
    """Have an alias mean a version; it leads there as soon as that can answer.

    Example: modelport models alias wine latest 3
    """
    client = Client.from_options(base_url, api_key, data_dir)
    path = f"{_ROOT}/{quote(model)}/aliases/{quote(name, safe='')}"
    if drop:
        client.delete(path)
    if version is not None:
        _tell_alias(client.put(path, {"version": version, "expected": expected}).body, json_=json_)
        return
    rows = client.get(f"{_ROOT}/{quote(model)}").body["aliases"]
    found = next((row for row in rows if row["alias"] == name), None)
    if found is not None:
        _tell_alias(found, json_=json_)
    elif not drop:
        raise Failure(f"{model} has no alias {name}; it has {', '.join(row['alias'] for row in rows)}", exit_code=2)


def rollback(
    model: ModelName,
    name: Annotated[str, typer.Argument(help="The alias.", metavar="ALIAS")] = "latest",
    base_url: BaseUrl = None,
    api_key: ApiKey = None,
    data_dir: DataDir = DEFAULT_DATA_DIR,
    json_: AsJson = False,
) -> None:
    """Have an alias mean what it meant before. It is refused where another operator moves it at the same time.

    Example: modelport models rollback wine
    """
    client = Client.from_options(base_url, api_key, data_dir)
    path = f"{_ROOT}/{quote(model)}"
    rows = client.get(path).body["aliases"]
    now = next((row["pending"] or row["version"] for row in rows if row["alias"] == name), None)
    body = client.post(f"{path}/aliases/{quote(name, safe='')}/rollback", {"expected": now}).body
    _tell_alias(body, json_=json_)


def remove(
    model: ModelName,
    version: Annotated[str | None, typer.Argument(help="One version; nothing: the model as a whole.")] = None,
    base_url: BaseUrl = None,
    api_key: ApiKey = None,
    data_dir: DataDir = DEFAULT_DATA_DIR,
    json_: AsJson = False,
) -> None:
    """Take a version, or a model that was added, out of service; it is unloaded after its last call.

    Example: modelport models remove wine 1
    """
    client = Client.from_options(base_url, api_key, data_dir)
    body = client.delete(_version_path(model, version) if version else f"{_ROOT}/{quote(model)}").body
    if json_:
        print_json(body)
    else:
        typer.echo(f"{body['id']} is out of service.")


def deprecate(
    model: ModelName,
    version: Annotated[str, typer.Argument(help="One of its versions.")],
    at: Annotated[str | None, typer.Option("--at", help="From when on it is not to be used; from now on.")] = None,
    sunset: Annotated[str | None, typer.Option(help="From when on it is gone, such as 2027-07-01T00:00:00Z.")] = None,
    successor: Annotated[str, typer.Option(help="What to use instead.")] = "",
    link: Annotated[str, typer.Option(help="A page about it.")] = "",
    keep: Annotated[bool, typer.Option("--keep", help="Take the announcement back.")] = False,
    base_url: BaseUrl = None,
    api_key: ApiKey = None,
    data_dir: DataDir = DEFAULT_DATA_DIR,
    json_: AsJson = False,
) -> None:
    """Announce the end of a version: told in headers, refused after the sunset.

    Example: modelport models deprecate wine 1 --sunset 2027-07-01T00:00:00Z --successor wine@2
    """
    client = Client.from_options(base_url, api_key, data_dir)
    path = f"{_version_path(model, version)}/deprecation"
    if keep:
        body = client.delete(path).body
    else:
        since = at or time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        dates = {"deprecated_at": since, "sunset_at": sunset, "successor": successor, "link": link}
        body = client.put(path, dates).body
    if json_:
        print_json(body)
    else:
        typer.echo(f"{model}@{version} {'stays' if keep else 'ends' if sunset else 'is deprecated'}.")


def _found(source: str) -> list[dict[str, Any]]:
    """What is to be added: of a file that is here with its hash, of a folder each version in it."""
    # Reading folders and addresses brings in what no other command needs.
    from modelport.catalog.imports import Found, SourceError, read_folder

    if source.startswith(_REMOTE):
        return [{"id": Path(source).stem.lower(), "source": source}]
    path = Path(source).expanduser().resolve()
    try:
        versions = read_folder(path) if path.is_dir() else [Found(path.stem.lower(), "", path)]
    except SourceError as error:
        raise Failure(f"{source} can't be added: {error}", exit_code=2) from error
    if not path.exists():
        raise Failure(f"there is no such file: {source}", exit_code=2)
    return [_body(found) for found in versions]


def _body(found: Found) -> dict[str, Any]:
    body: dict[str, Any] = {"id": found.model, "source": str(found.path), "sha256": _hash(found.path)}
    told = {"version": found.version, "kind": found.kind, "options": found.options, "description": found.description}
    return body | {name: value for name, value in told.items() if value}


def _hash(path: Path) -> str:
    """The file's SHA-256, with a bar while it takes long."""
    digest, done, size = hashlib.sha256(), 0, path.stat().st_size
    bar = Terminal(sys.stderr) if sys.stderr.isatty() else None
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
            done += len(chunk)
            if bar is not None and size > 100 * _CHUNK_BYTES:
                bar.progress(f"hashing {path.name}", done, size)
    return digest.hexdigest()


def _options(given: list[str]) -> dict[str, Any]:
    options = {}
    for text in given:
        name, mark, value = text.partition("=")
        if not mark:
            raise Failure(f"--option {text}: say NAME=JSON, such as max_batch=16", exit_code=2)
        try:
            options[name] = json.loads(value)
        except ValueError:
            # A word without quotes is meant as it stands.
            options[name] = value
    return options


def _add(client: Client, body: dict[str, Any], *, wait: bool, quiet: bool) -> dict[str, Any]:
    added: dict[str, Any] = client.post(_ROOT, body).body
    if wait:
        added = _wait(client, body["id"], added, Terminal(sys.stderr))
    if not quiet:
        typer.echo(f"{added['model']}@{added['id']} is {added['status']}, SHA-256 {added['sha256'] or 'not known yet'}")
    return added


def _wait(client: Client, model: str, added: dict[str, Any], terminal: Terminal) -> dict[str, Any]:
    """Return when the version can answer. Raises: Failure when it can't be loaded."""
    path = _version_path(model, added["id"])
    while added["status"] == "loading":
        if added["total_bytes"]:
            terminal.progress(f"{model}@{added['id']}", added["done_bytes"], added["total_bytes"])
        time.sleep(_LOOK_S)
        added = client.get(path).body
    if added["status"] == "failed":
        raise Failure(f"{model}@{added['id']} can't be loaded: {added['detail']} What was served before still is.")
    return added


def _tell_alias(body: dict[str, Any], *, json_: bool) -> None:
    if json_:
        print_json(body)
    elif body["pending"]:
        typer.echo(f"{body['alias']} leads to {body['version']}, and to {body['pending']} when that can answer.")
    else:
        before = f" (a rollback leads to {body['previous']})" if body["previous"] else ""
        typer.echo(f"{body['alias']} leads to {body['version']}{before}.")


def _version_path(model: str, version: str) -> str:
    return f"{_ROOT}/{quote(model)}/versions/{quote(version, safe='')}"
