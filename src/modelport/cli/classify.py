"""`modelport classify`: what is in a picture."""

from __future__ import annotations

import base64
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from modelport.cli.client import DEFAULT_DATA_DIR, ApiKey, BaseUrl, Client, DataDir
from modelport.cli.output import AsJson, Failure, print_json

# From so many pictures on it is said how far it is.
_MANY = 3


def classify(
    images: Annotated[list[Path], typer.Argument(help="Picture files: JPEG, PNG, WebP, …", metavar="IMAGE…")],
    model: Annotated[str | None, typer.Option(help="An image model's id; the server's own by default.")] = None,
    top: Annotated[int, typer.Option(min=1, max=1000, help="How many labels.")] = 5,
    base_url: BaseUrl = None,
    api_key: ApiKey = None,
    data_dir: DataDir = DEFAULT_DATA_DIR,
    json_: AsJson = False,
) -> None:
    """Say what is in each picture, by the server's image model.

    A picture that fails is reported and the others go on; the exit code is then 1.

    Example: modelport classify holiday.jpg --top 3
    """
    missing = [str(path) for path in images if not path.is_file()]
    if missing:
        raise Failure(f"there is no such file: {', '.join(missing)}", exit_code=2)
    client = Client.from_options(base_url, api_key, data_dir)
    results = []
    for number, path in enumerate(images, 1):
        if len(images) >= _MANY and sys.stderr.isatty():
            typer.echo(f"\r{number}/{len(images)} {path.name:40.40}", err=True, nl=number == len(images))
        result = _classify(client, path, model=model, top=top)
        results.append(result)
        if not json_:
            _print(result)
    if json_:
        print_json(results)
    if any("error" in result for result in results):
        raise typer.Exit(1)


def _classify(client: Client, path: Path, *, model: str | None, top: int) -> dict[str, Any]:
    body: dict[str, Any] = {"image": base64.b64encode(path.read_bytes()).decode(), "top_k": top}
    if model is not None:
        body["model"] = model
    try:
        answer = client.post("/v1/images/classify", body)
    except Failure as failure:
        return {"file": str(path), "error": str(failure)}
    return {"file": str(path), **answer.body, "cost_usd": answer.headers.get("x-cost-usd")}


def _print(result: dict[str, Any]) -> None:
    if "error" in result:
        typer.echo(f"{result['file']}: {result['error']}", err=True)
        return
    typer.echo(f"{result['file']}  ({result['model']}, {result['latency_ms']:.0f} ms)")
    for prediction in result["predictions"]:
        typer.echo(f"  {100 * prediction['confidence']:5.1f} %  {prediction['label']}")
