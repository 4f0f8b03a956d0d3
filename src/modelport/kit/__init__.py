"""Ground: clock, ids and money. No I/O, no knowledge of the platform."""
