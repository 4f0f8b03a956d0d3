"""Alembic's scripts. Run by `modelport.db.migrate`, which hands them a connection."""
