"""Any OpenAI-compatible server as a backend. See docs/guides/upstreams.md."""

from modelport.backends.openai.backend import OpenAIBackend

__all__ = ["OpenAIBackend"]
