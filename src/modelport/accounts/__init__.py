"""Accounts: plans, organizations, their projects, and the people who operate the platform."""
