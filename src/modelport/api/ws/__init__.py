"""The WebSocket door: many calls on one connection, each through the corridor like any other."""
