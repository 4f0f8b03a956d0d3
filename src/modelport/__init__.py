"""Modelport: turn AI models into an API product."""

__version__ = "0.1.0"
