"""`modelport serve`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from modelport.cli.configuration import ConfigFile, read
from modelport.cli.output import Failure


def serve(
    config: ConfigFile = None,
    host: Annotated[str | None, typer.Option(help="The address to listen on.")] = None,
    port: Annotated[int | None, typer.Option(help="0 takes a free port and prints it.")] = None,
    data_dir: Annotated[Path | None, typer.Option(help="Everything that is written lies there.")] = None,
    workers: Annotated[int | None, typer.Option(help="Gateway processes on this machine.")] = None,
) -> None:
    """Serve the models until SIGTERM or Ctrl-C; calls in flight are finished.

    Example: modelport serve --port 9000 --workers 2
    """
    from modelport.supervisor import serve as supervisor
    from modelport.supervisor.refusal import StartRefused
    from modelport.supervisor.terminal import Terminal

    flags: dict[str, Any] = {}
    server = {"host": host, "port": port, "workers": workers}
    if given := {name: value for name, value in server.items() if value is not None}:
        flags["server"] = given
    if data_dir is not None:
        flags["data_dir"] = data_dir
    try:
        supervisor.serve(read(config, **flags), reload=lambda: read(config, **flags), terminal=Terminal())
    except StartRefused as refusal:
        raise Failure(str(refusal), exit_code=refusal.exit_code) from refusal
