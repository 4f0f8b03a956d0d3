"""The official SDKs' own test suites against our server: `make compat`."""
