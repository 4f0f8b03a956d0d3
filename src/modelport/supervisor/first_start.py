"""The database made ready, and the first start's credentials: made once, shown once, kept in credentials.json."""

from __future__ import annotations

import json
import os
from pathlib import Path

from modelport.access.service import KeyIssuer
from modelport.accounts.first_start import FILE_NAME, FirstStart, ensure_first_start
from modelport.catalog.configured import all_models
from modelport.db.engine import open_database
from modelport.db.migrate import DatabaseTooNew, migrate
from modelport.errors import Unavailable
from modelport.kit.clock import SystemClock
from modelport.kit.ids import IdSource
from modelport.settings import Settings
from modelport.supervisor.refusal import StartRefused


async def prepare_database(settings: Settings, *, base_url: str) -> str:
    """Migrate the database and make sure that there is somebody to serve; the words for a newcomer, else nothing.

    Raises: StartRefused when the database can't be used.
    """
    try:
        db = open_database(settings.database.url, data_dir=settings.data_dir, pool_size=settings.database.pool_size)
    except ValueError as error:
        raise StartRefused(f"database.url: {error}") from error
    clock = SystemClock()
    ids = IdSource(clock)
    try:
        await migrate(db)
        made = await ensure_first_start(
            db,
            clock=clock,
            ids=ids,
            data_dir=settings.data_dir,
            base_url=base_url,
            issue_key=KeyIssuer(clock, ids).issue_full,
        )
    except DatabaseTooNew as error:
        raise StartRefused(str(error)) from error
    except Unavailable as error:
        raise StartRefused(f"the database can't be used: {error.internal or error.message}", exit_code=1) from error
    finally:
        await db.close()
    if made is not None:
        return _words(made, settings)
    _move(settings.data_dir / FILE_NAME, base_url)
    return ""


def _move(path: Path, base_url: str) -> None:
    """Keep the file's address that of the running server, which commands read there."""
    try:
        content = json.loads(path.read_bytes())
    except FileNotFoundError:
        return
    if content.get("base_url") == base_url:
        return
    content |= {"base_url": base_url, "portal_url": base_url + "/"}
    partial = path.with_name(path.name + ".partial")
    partial.unlink(missing_ok=True)
    with os.fdopen(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        json.dump(content, file, indent=2)
    partial.replace(path)


def _words(made: FirstStart, settings: Settings) -> str:
    """What a newcomer can type right away."""
    chat = next((row.id for row in all_models(settings) if row.kind == "chat"), "sandbox")
    body = json.dumps({"model": chat, "messages": [{"role": "user", "content": "What is the capital of France?"}]})
    return f"""
The first start made an organization, an operator and two API keys. They are shown only now, and kept in
{settings.data_dir / FILE_NAME}:

  operator   {made.operator_email}   password {made.operator_password}
  live key   {made.api_key}
  test key   {made.test_api_key}   (free; the sandbox stands in for upstreams)

Try it:

  curl {made.base_url}/v1/chat/completions \\
    -H "Authorization: Bearer {made.api_key}" -H "Content-Type: application/json" \\
    -d '{body}'
"""
