"""A request that carries an `Idempotency-Key` runs once; whoever repeats it gets its answer again."""
