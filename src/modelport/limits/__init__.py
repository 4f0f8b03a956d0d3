"""Limits: how much of what an organization and a key may use at one time."""
