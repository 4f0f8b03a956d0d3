"""`modelport keys`: create, list and revoke API keys."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from modelport.cli.client import DEFAULT_DATA_DIR, ApiKey, BaseUrl, Client, DataDir
from modelport.cli.output import AsJson, print_json, print_table

app = typer.Typer(name="keys", help="Create, list and revoke API keys.", no_args_is_help=True)
_PAGE = "100"


@app.command(name="list")
def list_(
    revoked: Annotated[bool, typer.Option("--revoked", help="Show revoked keys too.")] = False,
    base_url: BaseUrl = None,
    api_key: ApiKey = None,
    data_dir: DataDir = DEFAULT_DATA_DIR,
    json_: AsJson = False,
) -> None:
    """List the organization's keys; a key itself is never shown again.

    Example: modelport keys list
    """
    client = Client.from_options(base_url, api_key, data_dir)
    rows: list[dict[str, Any]] = []
    after: str | None = None
    while True:
        page = client.get("/v1/api_keys", after=after, limit=_PAGE).body
        rows += page["data"]
        if not page["has_more"]:
            break
        after = page["last_id"]
    rows = [row for row in rows if revoked or not row["revoked_at"]]
    if json_:
        print_json(rows)
        return
    headings = ["id", "name", "key", "state", "last used", "models", "scopes"]
    print_table(headings, [_row(row) for row in rows], empty="There are no keys.")


@app.command()
def create(
    name: Annotated[str, typer.Argument(help="What it is for, such as 'staging'.")],
    scope: Annotated[
        list[str] | None,
        typer.Option(help="What it may do (again for more); the server's default where none is named."),
    ] = None,
    model: Annotated[
        list[str] | None, typer.Option(help="A model it may use (again for more); all by default.")
    ] = None,
    test: Annotated[
        bool, typer.Option("--test", help="A test key: answers come from the sandbox, nothing is charged.")
    ] = False,
    requests_per_minute: Annotated[int | None, typer.Option(help="A limit of its own.")] = None,
    tokens_per_minute: Annotated[int | None, typer.Option(help="A limit of its own.")] = None,
    expires_at: Annotated[str | None, typer.Option(help="A time such as 2027-01-31T00:00:00Z.")] = None,
    base_url: BaseUrl = None,
    api_key: ApiKey = None,
    data_dir: DataDir = DEFAULT_DATA_DIR,
    json_: AsJson = False,
) -> None:
    """Create a key and print it, once.

    Example: modelport keys create staging --scope inference --model smollm2-135m-instruct
    """
    wanted: dict[str, Any] = {"name": name, "mode": "test" if test else "live", "expires_at": expires_at}
    wanted |= {"scopes": scope or None, "models": model or None}
    limits = {"requests_per_minute": requests_per_minute, "tokens_per_minute": tokens_per_minute}
    wanted["limits"] = {name: value for name, value in limits.items() if value is not None} or None
    body = {name: value for name, value in wanted.items() if value is not None}
    created = Client.from_options(base_url, api_key, data_dir).post("/v1/api_keys", body).body
    if json_:
        print_json(created)
        return
    typer.echo(created["key"])
    typer.echo(f"This is the only time {created['id']} is shown in full: keep it now.", err=True)


@app.command()
def revoke(
    key_id: Annotated[str, typer.Argument(help="Its id, key_…, as `modelport keys list` shows it.")],
    base_url: BaseUrl = None,
    api_key: ApiKey = None,
    data_dir: DataDir = DEFAULT_DATA_DIR,
    json_: AsJson = False,
) -> None:
    """Revoke a key: it is refused at once, everywhere.

    Example: modelport keys revoke key_0190…
    """
    answer = Client.from_options(base_url, api_key, data_dir).delete(f"/v1/api_keys/{key_id}").body
    if json_:
        print_json(answer)
    else:
        typer.echo(f"{key_id} is revoked.")


def _row(key: dict[str, Any]) -> list[object]:
    state = "revoked" if key["revoked_at"] else f"until {key['expires_at']}" if key["expires_at"] else "valid"
    models = "all" if key["models"] is None else ", ".join(key["models"])
    shown = f"{key['prefix']}…{key['last4']}"
    return [key["id"], key["name"], shown, state, key["last_used_at"] or "never", models, ", ".join(key["scopes"])]
