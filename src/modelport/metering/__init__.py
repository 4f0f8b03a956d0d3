"""Metering: what each call consumed and cost, written down so that nothing is lost and nothing counts twice."""
