"""`modelport migrate`."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Annotated

import typer

from modelport.cli.configuration import ConfigFile, read
from modelport.cli.output import AsJson, Failure, print_json


def migrate(
    config: ConfigFile = None,
    data_dir: Annotated[Path | None, typer.Option(help="Where the SQLite database lies.")] = None,
    json_: AsJson = False,
) -> None:
    """Bring the database up to date; `serve` does so too.

    Example: modelport migrate --config modelport.toml
    """
    from modelport.db import migrate as steps
    from modelport.db.engine import open_database
    from modelport.errors import Unavailable

    settings = read(config, **({"data_dir": data_dir} if data_dir else {}))
    directory = settings.data_dir.expanduser().resolve()
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)

    async def run() -> steps.Migrated:
        db = open_database(settings.database.url, data_dir=directory, pool_size=settings.database.pool_size)
        try:
            return await steps.migrate(db)
        finally:
            await db.close()

    try:
        done = asyncio.run(run())
    except (steps.DatabaseTooNew, ValueError) as error:
        raise Failure(str(error), exit_code=2) from error
    except Unavailable as error:
        raise Failure(f"the database can't be reached: {error.internal or error.message}") from error
    if json_:
        print_json({"before": done.before, "after": done.after})
    elif done.before == done.after:
        typer.echo(f"The database is up to date ({done.after}).")
    else:
        typer.echo(f"The database went from {done.before or 'nothing'} to {done.after}.")
