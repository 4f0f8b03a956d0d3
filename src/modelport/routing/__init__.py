"""Routing: which target answers a call, in what order others follow, and which targets are left alone for a while."""
