"""How commands answer: tables for people, JSON for programs, and one kind of failure."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from typing import Annotated, Any

import typer

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for programs.")]


class Failure(Exception):
    """Ends the command with a sentence on standard error. Exit code 2: what was asked can't be done as it stands."""

    def __init__(self, message: str, *, exit_code: int = 1) -> None:
        super().__init__(message)
        self.exit_code = exit_code


def print_json(value: Any) -> None:
    """One JSON document on standard output."""
    typer.echo(json.dumps(value, indent=2, ensure_ascii=False))


def print_table(headings: Sequence[str], rows: Sequence[Sequence[object]], *, empty: str) -> None:
    """Columns as wide as they need, the last one cut at the terminal's edge; `empty` where there are no rows."""
    if not rows:
        typer.echo(empty)
        return
    cells = [[str(cell) if cell is not None else "" for cell in row] for row in rows]
    widths = [max(len(row[column]) for row in [list(headings), *cells]) for column in range(len(headings))]
    edge = shutil.get_terminal_size((160, 24)).columns
    for row in [[heading.upper() for heading in headings], *cells]:
        line = "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        typer.echo(line[:edge])
