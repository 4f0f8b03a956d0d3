"""Service levels: what was promised of the platform's calls, and what came of it, counted in the database."""
