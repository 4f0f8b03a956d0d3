"""What Alembic runs for every command: on the connection it is given, in the transaction that is already open."""

from __future__ import annotations

from alembic import context

from modelport.db.schema import metadata

# SQLite can't alter a column in place; in batch mode Alembic copies the table instead.
context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    render_as_batch=True,
    transactional_ddl=True,
)
context.run_migrations()
