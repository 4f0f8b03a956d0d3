"""Backends: the adapters that run a model. One protocol, one folder or file each."""
