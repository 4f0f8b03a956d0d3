"""Several models that answer as one: asked in parallel, averaged or voted upon."""
