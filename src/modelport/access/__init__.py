"""Access: API keys, what they may do, and how every process knows at once what became of them."""
