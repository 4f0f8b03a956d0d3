"""The database: engine, schema and migrations. SQLite by default, PostgreSQL by URL alone."""
