"""Models that are a Python class: each in a process of its own, which may die without taking anything else along."""
