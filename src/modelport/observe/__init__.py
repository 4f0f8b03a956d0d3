"""Observation: logs, metrics and trace contexts. What an operator sees of the platform at work."""
