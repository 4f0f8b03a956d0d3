"""The corridor: the one path of every call, whichever door it came through."""
