"""Answers given to more than one call: those that are stored, and those that are on their way."""
