"""Models, their versions and aliases, and where their files come from."""
