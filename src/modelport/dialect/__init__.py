"""The wire dialects of inference APIs: pure translations between them, bytes and plain values in and out.

Inside the corridor every language model answers in OpenAI's chat dialect; doors and backends that speak another one
translate at their own edge with what stands here.
"""
