"""`modelport models`: what the server offers. What changes it stands in `registry.py`."""

from __future__ import annotations

from typing import Annotated, Any
from urllib.parse import quote

import typer

from modelport.cli import registry
from modelport.cli.client import DEFAULT_DATA_DIR, ApiKey, BaseUrl, Client, DataDir
from modelport.cli.output import AsJson, print_json, print_table

app = typer.Typer(name="models", help="See which models the server offers, and change them.", no_args_is_help=True)
app.command()(registry.add)
app.command()(registry.alias)
app.command()(registry.rollback)
app.command()(registry.remove)
app.command()(registry.deprecate)


@app.command(name="list")
def list_(
    base_url: BaseUrl = None, api_key: ApiKey = None, data_dir: DataDir = DEFAULT_DATA_DIR, json_: AsJson = False
) -> None:
    """List the models that this key may use.

    Example: modelport models list
    """
    rows = Client.from_options(base_url, api_key, data_dir).get("/v1/models").body["data"]
    if json_:
        print_json(rows)
        return
    table = [[row["id"], row["kind"], row["status"], ", ".join(row["versions"]), row["description"]] for row in rows]
    print_table(["id", "kind", "status", "versions", "description"], table, empty="This key may use no model.")


@app.command()
def show(
    model: Annotated[str, typer.Argument(help="A model's id.")],
    base_url: BaseUrl = None,
    api_key: ApiKey = None,
    data_dir: DataDir = DEFAULT_DATA_DIR,
    json_: AsJson = False,
) -> None:
    """Show one model: its state, versions and prices.

    Example: modelport models show iris
    """
    client = Client.from_options(base_url, api_key, data_dir)
    path = f"/v1/models/{quote(model)}"
    found = client.get(path).body
    if json_:
        print_json(found)
        return
    for name in ("id", "description", "kind", "status", "detail", "context_tokens", "num_labels"):
        if found[name] not in (None, ""):
            typer.echo(f"{name.replace('_', ' '):14} {found[name]}")
    for name, price in (found["prices"] or {}).items():
        if _is_more_than_nothing(price):
            typer.echo(f"{'price':14} {name} {price}")
    for name, why in found["pending"].items():
        typer.echo(f"{'pending':14} {name}: {why}")
    for version in client.get(f"{path}/versions").body["data"]:
        typer.echo(f"{'version':14} {version['id']} {version['status']} {', '.join(version['aliases'])}".rstrip())


def _is_more_than_nothing(price: Any) -> bool:
    return isinstance(price, str) and price.strip("0.") != ""
