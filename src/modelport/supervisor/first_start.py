"""The database made ready, and the first start's credentials: made once, shown once, kept in credentials.json."""

from __future__ import annotations

from modelport.accounts.service import ensure_first_start
from modelport.db.engine import open_database
from modelport.db.migrate import DatabaseTooNew, migrate
from modelport.errors import Unavailable
from modelport.kit.clock import SystemClock
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
    try:
        await migrate(db)
        made = await ensure_first_start(db, clock=SystemClock(), base_url=base_url, data_dir=settings.data_dir)
    except DatabaseTooNew as error:
        raise StartRefused(str(error)) from error
    except Unavailable as error:
        raise StartRefused(f"the database can't be used: {error.internal or error.message}", exit_code=1) from error
    finally:
        await db.close()
    return _words(made, settings) if made is not None else ""


def _words(made: FirstStart, settings: Settings) -> str:
    """What a newcomer can type right away."""
    return f"""
This is the first start, so an organization, an operator and two API keys were made. They are shown only now, and
kept in {settings.data_dir / "credentials.json"}:

  operator   {made.operator_email}   password {made.operator_password}
  live key   {made.api_key}
  test key   {made.test_api_key}   (answers come from the sandbox)

Try it:

  curl {made.base_url}/v1/chat/completions \\
    -H "Authorization: Bearer {made.api_key}" -H "Content-Type: application/json" \\
    -d '{{"model": "{_model(settings)}", "messages": [{{"role": "user", "content": "What is the capital of France?"}}]}}'
"""
