"""Budgets: how much money calls may cost in a period, reserved before each call and settled after it."""
