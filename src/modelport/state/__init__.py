"""Short-lived state that processes share: limits, holds, small values, messages."""
