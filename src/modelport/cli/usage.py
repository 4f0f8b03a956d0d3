"""`modelport usage`."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from modelport.cli.client import DEFAULT_DATA_DIR, ApiKey, BaseUrl, Client, DataDir
from modelport.cli.output import AsJson, print_json, print_table


def usage(
    start: Annotated[str | None, typer.Option(help="From this time on, such as 2026-11-01T00:00:00Z.")] = None,
    end: Annotated[str | None, typer.Option(help="Up to this time.")] = None,
    bucket: Annotated[str | None, typer.Option(help="minute, hour, day or month.")] = None,
    group_by: Annotated[str | None, typer.Option(help="model, key, project, …; several with commas.")] = "model",
    base_url: BaseUrl = None,
    api_key: ApiKey = None,
    data_dir: DataDir = DEFAULT_DATA_DIR,
    json_: AsJson = False,
) -> None:
    """Show calls, tokens, latency and cost.

    Example: modelport usage --bucket day --group-by model,key
    """
    client = Client.from_options(base_url, api_key, data_dir)
    report = client.get("/v1/usage", start=start, end=end, bucket=bucket, group_by=group_by or None).body
    if json_:
        print_json(report)
        return
    headings = ["from", "group", "calls", "failed", "input", "output", "p50 ms", "p95 ms", "cost usd"]
    rows = [_row(row) for row in report["data"]]
    if rows:
        rows.append(_row(report["totals"] | {"start": "total", "group": {}}))
    print_table(headings, rows, empty="Nothing was used in this time.")


def _row(row: dict[str, Any]) -> list[object]:
    latency = row.get("latency_ms") or {}
    group = ", ".join(str(value) for value in (row.get("group") or {}).values())
    tokens = [row["input_tokens"], row["output_tokens"]]
    times = [_whole(latency.get("p50")), _whole(latency.get("p95"))]
    return [row.get("start", ""), group, row["calls"], row["failed"], *tokens, *times, row["cost_usd"]]


def _whole(milliseconds: float | None) -> str:
    return "" if milliseconds is None else f"{milliseconds:.1f}"
